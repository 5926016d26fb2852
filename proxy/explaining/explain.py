"""The steps of admission, in the order of a call (consumers.py, requests.py, dispatch.py), asked one by one.

Each is decided by the function that decides it for a call, so that what is explained and what happens cannot differ;
none counts, reserves, records or sends anything. After a step that refuses, the following are asked all the same: who
mends one thing wants to know what comes next. What the client gets is what the first one says.
"""

import time
from collections.abc import Sequence
from contextlib import suppress

from proxy import listings
from proxy.admission import check_right, missing_key, not_accepted, shut_out
from proxy.cache.policy import KEY, SHARED, TENANT, kept_calls, sharing_of
from proxy.call import Call
from proxy.client_address import Address
from proxy.default_models import WORDS
from proxy.dialects.base import Request
from proxy.dispatch import to_reserve
from proxy.errors import Forbidden, MethodNotAllowed, NotFound, Refusal, TooManyRequests, Unavailable
from proxy.explaining import samples
from proxy.explaining.question import Explanation, Question, Step, Verdict
from proxy.explaining.world import World
from proxy.fleet.state import BackendState
from proxy.ip_rules import Entry, IPRules, RulesOfBoth
from proxy.limits.rules import Rule, has_room, refusal, seconds_until_reset
from proxy.refusal_reasons import reason
from proxy.requests import govern, name_model, pin_of
from proxy.routes import Kind, Route, find
from proxy.snapshot import Key, KeyRow

# In the text of a step that cannot be asked.
KEY_FIRST = "Asked once the key is known."
# Whose answers a key may get, by how its tenant shares them.
SHARERS = {SHARED: "all tenants that share answers", TENANT: "its tenant", KEY: "this key alone"}


async def explain(question: Question, world: World) -> Explanation:
    return await _Asking(question, world).run()


class _Asking:
    def __init__(self, question: Question, world: World) -> None:
        self.question = question
        self.world = world
        self.now = world.now()
        self.steps: list[Step] = []
        self.refusal: Refusal | None = None
        self.cause = ""
        self.is_certain = True  # whether all that could refuse was known
        self.backend = ""
        self.key: Key | None = None
        self.call = Call("", "", question.path, question.address, self.now)
        self.notes = list(world.notes)

    async def run(self) -> Explanation:
        route = self.route()
        if route is not None and route.kind is Kind.ROOT:
            self.rules_for_all()
            self.passes("answer", "Answer", "The gateway answers by itself, without a key.")
            return self.explanation()
        self.gateway()
        self.rules_for_all()
        self.whose()
        if self.key is not None:
            self.rules_of_the_tenant_and_the_key()
        if self.key is None or route is None:
            for name, title in (
                ("endpoint", "Right"),
                ("model", "Model"),
                ("limits", "Limits"),
                ("backend", "Backend"),
            ):
                self.add(name, title, Verdict.NOT_ASKED, KEY_FIRST if route else "There is no such endpoint.")
            return self.explanation()
        self.call.key, self.call.route = self.key, route
        self.right(route)
        if route.kind is Kind.MANAGE:
            self.add("model", "Model", Verdict.UNKNOWN, "What it may do depends on what it asks for.")
        elif route.kind in listings.KINDS:
            self.listing(route)
        else:
            await self.generation(route)
        return self.explanation()

    # What is answered.

    def explanation(self) -> Explanation:
        refusal, headers = self.refusal, []
        if refusal is None:
            status, code, message = (200 if self.is_certain else None), "", ""
        else:
            status, code, message = refusal.status, refusal.code, refusal.message
            headers = [(name.decode(), value.decode("latin-1")) for name, value in refusal.headers.items()]
            if refusal.retry_after is not None:
                headers.append(("retry-after", str(max(int(-(-refusal.retry_after // 1)), 1))))
        backend = "" if refusal else self.backend
        return Explanation(tuple(self.steps), status, code, message, headers, self.cause, backend, tuple(self.notes))

    def add(self, name: str, title: str, verdict: Verdict, text: str, *, facts: Sequence[tuple[str, str]] = ()) -> None:
        self.steps.append(Step(name, title, verdict, text, facts=tuple(facts)))
        if verdict in (Verdict.UNKNOWN, Verdict.WAITS):
            self.is_certain = False

    def passes(self, name: str, title: str, text: str, facts: Sequence[tuple[str, str]] = ()) -> None:
        self.add(name, title, Verdict.PASSES, text, facts=facts)

    def refuses(
        self, name: str, title: str, said: Refusal, text: str = "", *, code: str = "",
        facts: Sequence[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        """`said`: what the client would get. `text`, `code`: what is really the matter, where that is more."""
        if self.refusal is None:
            self.refusal, self.cause = self.throttled(said), code or said.code
        text = text or said.message
        self.steps.append(Step(name, title, Verdict.REFUSED, text, code or said.code, tuple(facts)))

    def throttled(self, said: Refusal) -> Refusal:
        """401 becomes 429 where too many came from one address (consumers.authenticate)."""
        wait = self.world.failures.expected(self.question.address) if said.status == 401 else 0
        if not wait:
            return said
        self.notes.append("Too many calls with wrong keys came from this address: for a while 401 is answered as 429.")
        message = "Too many calls with keys that are not accepted came from this address."
        return TooManyRequests("too_many_failures", message, retry_after=wait)

    # The steps.

    def route(self) -> Route | None:
        methods, self.call.parameter = find(self.question.path)
        shown = self.question.path.decode("utf-8", "replace")
        if not methods:
            self.refuses("path", "Path", NotFound("unknown_route", "404 page not found"), f"There is no {shown}.")
            return None
        route = methods.get(self.question.method) if self.question.method else next(iter(methods.values()))
        if route is None:
            text = f"{shown} takes {', '.join(methods)}."
            self.refuses("path", "Path", MethodNotAllowed("method_not_allowed", "405 method not allowed"), text)
            return None
        self.passes("path", "Path", f"{route.method} {shown} is one of the paths that there are.")
        return route

    def gateway(self) -> None:
        if (obstacle := self.world.obstacle) is not None:
            self.refuses("gateway", "Gateway", obstacle)
        elif self.world.serves:
            self.passes("gateway", "Gateway", "It takes calls.")
        else:
            self.add("gateway", "Gateway", Verdict.UNKNOWN, "Whether it takes calls now, only a running one can say.")

    def rules_for_all(self) -> None:
        rules, address = self.world.snapshot.ip_all, self.question.address
        text, facts = self.judged(rules, address), self.listed(rules)
        if not self.question.for_operator:
            text, facts = "The rules for everybody are the operator's.", []
        if rules.allow(address):
            self.passes("ip_all", "IP rules for all", text, facts)
        else:
            self.refuses("ip_all", "IP rules for all", shut_out(), text, facts=facts)

    def whose(self) -> None:
        """The key, its tenant and its user; sets `key` to what it may do, also where it may not be used now."""
        if self.question.is_without_key:
            self.place()
            return
        snapshot = self.world.snapshot
        row = snapshot.tables.keys.get(self.question.key_id or 0)
        if row is None:
            self.refuses("key", "Key", not_accepted(), "There is no such key.", code="unknown_key")
            return
        cause = snapshot.why_unusable(row, self.now)
        self.state_of_key(row, cause)
        self.state_of_owner(row, cause)
        self.key = snapshot.grant(row)

    def place(self) -> None:
        """A call without a key: whether its place in the network stands for one."""
        acting = self.world.snapshot.acting_for(self.question.address)
        self.key = self.world.snapshot.key_acting_for(self.question.address, self.now)
        visible = self.question.acting_keys
        if self.key is not None and acting is not None and visible is not None and self.key.id not in visible:
            self.key = None
            text = "None is needed from there: the call is made as a key that is not yours, of which nothing is told."
            self.add("key", "Key", Verdict.UNKNOWN, text)
        elif self.key is not None and acting is not None:
            text = f"None is needed from {acting.network}: the call is made as the key {self.key.prefix}."
            if not self.question.for_operator:
                text = f"None is needed from there: the call is made as the key {self.key.prefix}."
            self.passes("key", "Key", text)
            self.notes.append(
                "A call without a key must not come from a foreign web page, by a host name that is not in "
                "ALLOWED_HOSTS, or through a proxy that is not in TRUSTED_PROXIES."
            )
        elif acting is not None:
            text = "None would be needed from there, but the key that calls would be made as cannot be used now."
            self.refuses("key", "Key", missing_key(), text)
        else:
            self.refuses("key", "Key", missing_key(), "No key, and no IP rule lets this address call without one.")

    def state_of_key(self, row: KeyRow, cause: str) -> None:
        facts = [("prefix", row.prefix), ("name", row.name)]
        if row.expires_at is not None:
            facts.append(("expires", _moment(row.expires_at)))
        problem = self.problem_of_secret(row) if self.question.secret else ""
        if not problem and cause.startswith("key_"):
            problem = cause
        if problem:
            self.refuses("key", "Key", not_accepted(), reason(problem), code=problem, facts=facts)
        else:
            judged = "It and its secret may be used." if self.question.secret else "It may be used."
            self.passes("key", "Key", judged, facts)

    def problem_of_secret(self, row: KeyRow) -> str:
        found = self.world.admission.row(self.world.snapshot, self.question.secret)
        if found is None or found[0].id != row.id:
            return "unknown_key"
        return "key_rotated" if found[1] and (row.previous_expires_at or 0) <= self.now else ""

    def state_of_owner(self, row: KeyRow, cause: str) -> None:
        tables = self.world.snapshot.tables
        name, is_usable = tables.tenants.get(row.tenant_id, ("", False))
        if is_usable:
            self.passes("tenant", "Tenant", f"{name} is in use.")
        else:
            self.refuses(
                "tenant", "Tenant", not_accepted(), f"{name}: {reason('tenant_disabled')}", code="tenant_disabled"
            )
        if not row.user_id:
            self.passes("user", "User", "It is a service key: it belongs to nobody.")
            return
        name, is_usable = tables.users.get(row.user_id, ("", False))
        if is_usable:
            self.passes("user", "User", f"{name} may sign in.")
        else:
            self.refuses("user", "User", not_accepted(), f"{name}: {reason('user_disabled')}", code="user_disabled")

    def rules_of_the_tenant_and_the_key(self) -> None:
        assert self.key is not None
        address = self.question.address
        for name, title, rules in (
            ("ip_tenant", "IP rules of the tenant", self.key.tenant_ip),
            ("ip_key", "IP rules of the key", self.key.key_ip),
        ):
            text, facts = self.judged(rules, address), self.listed(rules)
            if rules.allow(address):
                self.passes(name, title, text, facts)
            else:
                self.refuses(name, title, not_accepted(), text, code="key_ip_denied", facts=facts)

    def right(self, route: Route) -> None:
        assert self.key is not None
        try:
            check_right(self.key, route)
        except Forbidden as exc:
            self.refuses("endpoint", "Right", exc)
        else:
            self.passes("endpoint", "Right", f"The key may call {route.path}.")

    def listing(self, route: Route) -> None:
        assert self.key is not None
        asked = self.question.model
        if asked:
            text = f"A call of {route.path} names no model: whether one of “{asked}” is answered, this does not say."
            self.add("model", "Model", Verdict.NOT_ASKED, text)
        if route.kind is Kind.MODEL:
            try:
                listings.model(self.call.parameter, self.world.fleet, self.key, self.world.snapshot)
            except Refusal as exc:
                self.refuses("model", "Model", exc)
                return
        self.passes("answer", "Answer", "The gateway answers by itself; no backend is asked.")

    # What asks a model.

    async def generation(self, route: Route) -> None:
        request = await self.model(route)
        if request is None or not self.policy(request):
            for name, title in (("limits", "Limits"), ("backend", "Backend")):
                self.add(name, title, Verdict.NOT_ASKED, "Asked once the model is known.")
            return
        if route.kind is Kind.COUNT:
            self.passes("answer", "Answer", "The gateway estimates by itself; no backend is asked, no limit counts it.")
            return
        await self.limits()
        if not self.world.is_recording:
            self.refuses("record", "Record", Unavailable("ledger_full", reason("ledger_full"), retry_after=5))
        self.cache(route)
        await self.backends(route)

    async def model(self, route: Route) -> Request | None:
        call, snapshot = self.call, self.world.snapshot
        try:
            request, call.prompt_bytes = samples.request_of(route, self.question.model)
            await name_model(call, request, snapshot, self.world.fleet)
        except Refusal as exc:
            self.refuses("model", "Model", exc, self.about_model(exc))
            return None
        assert call.model is not None
        served, stands_for = call.model.served.canonical, call.model.stands_for
        text = f"The key may use {served}."
        if stands_for in WORDS:
            text = f"“{call.asked}” stands for {WORDS[stands_for]}, which is {served} for this key."
        elif stands_for:
            text = f"“{call.asked}” is another name of {served}, which the key may use."
        self.passes("model", "Model", text, self.allowed_models())
        return request

    def about_model(self, refusal: Refusal) -> str:
        if refusal.code != "model_not_allowed":
            return refusal.message
        assert self.key is not None
        with suppress(Refusal):
            assert self.call.route is not None
            meant = self.world.snapshot.model(self.key, self.question.model, self.world.fleet.survey)
            if meant.served.cloud and not self.key.may_use_cloud and self.key.may_use(meant.served.canonical):
                return f"{meant.served.canonical} runs at ollama.com, and the key may not use cloud models."
        return (
            f"The key may not use “{self.question.model}”: it is none of {', '.join(self.key.models) or 'its models'}."
        )

    def allowed_models(self) -> list[tuple[str, str]]:
        assert self.key is not None
        return [("models of the key", ", ".join(self.key.models) or "all")]

    def policy(self, request: Request) -> bool:
        call, world = self.call, self.world
        assert self.key is not None
        assert call.model is not None
        try:
            govern(call, request, world.snapshot, world.configuration)
        except Refusal as exc:
            self.refuses("policy", "Policy", exc)
            return False
        pin = pin_of(self.key, call.model.policy, world.snapshot, world.configuration)
        facts = [("most tokens of one answer", f"{pin.output_cap:,}"), ("pattern", call.model.policy.pattern)]
        if pin.num_ctx:
            facts.append(("num_ctx", f"{pin.num_ctx:,}"))
        facts += [(name, str(value)) for name, value in pin.load_options]
        if pin.keep_alive is not None:
            facts.append(("keep_alive", str(pin.keep_alive)))
        text = f"A call that names no cap gets at most {call.output_cap:,} tokens." if call.output_cap else "No cap."
        self.passes("policy", "Policy", text, facts)
        return True

    async def limits(self) -> None:
        _, rules, model, address, estimate = to_reserve(self.call, self.world.snapshot.tables.prices)
        counted = [rule for rule in rules if not rule.model or rule.model == model]
        others = len(rules) - len(counted)
        if not counted:
            self.passes("limits", "Limits", f"{'None of them' if others else 'None'} holds for this call.")
            return
        found = await self.world.limits.count(counted, address)
        for rule, total in zip(counted, found.totals, strict=True):
            is_known = self.world.serves or found.source == "shared" or rule.window in ("hour", "day", "month")
            self.limit(rule, total, estimate.by_metric[rule.metric], address, is_known=is_known)

    def limit(self, rule: Rule, total: int, needed: int, address: str, *, is_known: bool) -> None:
        zone, now = self.world.configuration.time_zone, self.now
        window = rule.window_at(now, address, zone)
        reset = seconds_until_reset(rule, window, now)
        facts = [("amount", f"{rule.amount:,}"), ("needed by the shortest call", f"{needed:,}")]
        is_private = not self.question.for_operator and rule.counted_for.startswith("user ")
        if is_known and not is_private:
            facts[1:1] = [("used", f"{total:,}"), ("left", f"{max(rule.amount - total, 0):,}")]
        if reset is not None:
            facts.append(("resets", f"in {_duration(reset)}"))
        if not rule.enforced:
            facts.append(("mode", "only counted, refuses nothing"))
        title = f"Limit of {rule.describe()}"
        if not has_room(rule, total, needed):
            said = refusal(rule, window, total, needed, 1.0 if reset is None else max(reset, 1.0), now)
            self.refuses("limit", title, said, "It is used up." if total else "A call is larger than it.", facts=facts)
        elif not is_known and rule.enforced:
            self.add("limit", title, Verdict.UNKNOWN, "How much is used, only the running gateway knows.", facts=facts)
        else:
            self.passes("limit", title, "There is room." if rule.enforced else "It refuses nothing.", facts)

    def cache(self, route: Route) -> None:
        """Where a policy lets the key have answers that were made for others."""
        assert self.key is not None
        rule = self.key.cache
        calls = kept_calls(rule.policy, route.path) if rule is not None else ""
        if rule is None or not calls:
            return
        ttl = _duration(rule.ttl_seconds)
        answered = f"{calls} that was asked before is answered from the cache, in {ttl} at most after it"
        text = f"{answered}; then no backend is asked."
        facts = [("policy", rule.policy), ("answers of", SHARERS[sharing_of(rule.scope)]), ("kept for", ttl)]
        self.passes("cache", "Cache", text, facts)

    async def backends(self, route: Route) -> None:
        call, fleet = self.call, self.world.fleet
        assert call.model is not None
        moment, name = time.monotonic(), call.model.served.canonical
        state = None
        if route.kind is not Kind.SHOW and not fleet.line.is_waited_for(name):
            state = fleet.choice(call, moment)
        if state is None:
            try:
                await fleet.check_served(call)
            except Refusal as exc:
                self.refuses("backend", "Backend", exc, facts=self.each_backend(None))
                return
            state = await fleet.any_holder(call) if route.kind is Kind.SHOW else fleet.choice(call, time.monotonic())
            if fleet.line.is_waited_for(name):
                state = None
        if state is None:
            self.line()
            return
        self.backend = state.name
        facts, able = self.each_backend(state), len(fleet.holders(call, time.monotonic()))
        if not self.world.serves:
            text = "Whether one has a free slot is not known."
            if facts:
                text = f"{able} of {len(facts)} could serve it; slots are not known."
            self.add("backend", "Backend", Verdict.UNKNOWN, text, facts=facts)
            return
        why = "it has the model loaded" if name in state.warm else "nobody has the model loaded who is free"
        shown = f"{state.name} is chosen: {why}, and it has the fewest calls." if able > 1 else f"{state.name}."
        self.passes("backend", "Backend", shown if self.question.for_operator else "One is free.", facts)

    def line(self) -> None:
        line, facts = self.world.fleet.line, self.each_backend(None)
        try:
            line.check_room()
        except Refusal as exc:
            self.refuses("backend", "Backend", exc, facts=facts)
            return
        seconds = self.world.configuration.line_seconds
        text = f"All slots are taken: the call waits in line, for {_duration(seconds)} at most."
        self.add("backend", "Backend", Verdict.WAITS, text, facts=facts)
        self.notes.append("Whether a slot becomes free in time is not known: if none does, 503 is answered.")

    def each_backend(self, chosen: BackendState | None) -> list[tuple[str, str]]:
        """What stands for and against each; nothing where that is not for this reader."""
        if not self.question.for_operator:
            return []
        call, now = self.call, time.monotonic()
        assert call.model is not None
        in_rotation = {state.name for state in self.world.fleet.holders(call, now)}
        return [
            (state.name, self.about_backend(state, call.model.served.canonical, state.name in in_rotation, chosen))
            for state in self.world.fleet.states.values()
        ]

    def about_backend(self, state: BackendState, model: str, is_in: bool, chosen: BackendState | None) -> str:
        assert self.key is not None
        if not state.backend.enabled:
            return "switched off"
        if not state.is_up:
            return f"does not answer. {state.problem}".strip()
        if not state.has(model):
            return "lacks the model"
        if not state.may_serve(model, cloud=self.key.may_use_cloud):
            return "would send the prompt to another host, which the key may not have done"
        if not is_in:
            return "out of rotation after failures" if state.breaker.open_until else "offers less context"
        said = ["has the model loaded" if model in state.warm else "has the model, not loaded"]
        if self.world.serves:
            said.append(f"{state.in_flight.get(model, 0)} of {state.backend.slots} slots taken")
        if chosen is state and self.world.serves:
            said.append("chosen")
        return ", ".join(said)

    # Words.

    def judged(self, rules: IPRules | RulesOfBoth, address: Address | None) -> str:
        entry = rules.decide(address)
        if entry is None:
            return "There are none."
        return judged(entry, rules, address)

    def listed(self, rules: IPRules | RulesOfBoth) -> list[tuple[str, str]]:
        """The rules of a scope, in the order in which they are tried."""
        return [(str(network), "allow" if entry.allows else "deny") for network, entry in rules.rules[:50]]


def judged(entry: Entry, rules: IPRules | RulesOfBoth, address: Address | None) -> str:
    """Which rule decided, in words."""
    if address is None:
        return "There are rules, and the caller has no address that they could be held against (a Unix socket)."
    if entry.network is not None:
        verb = "lets" if entry.allows else "shuts"
        return f"“{entry}” {verb} {address} {'in' if entry.allows else 'out'}: no longer prefix fits it."
    if rules.allows_others:
        return f"None fits {address}, and none allows: who is not denied may come."
    return f"None fits {address}, and there are rules that allow: who is not allowed may not come."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{int(seconds + 0.999)} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def _moment(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(epoch))
