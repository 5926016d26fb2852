"""Configuration as code: what a file is refused for, what it changes, and that it changes nothing more."""

import json
import re
from io import StringIO
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.declared.document import MAX_BYTES, Unreadable, read
from proxy.declared.exporting import PlainDumper
from proxy.declared.kinds import KINDS
from proxy.declared.world import World
from proxy.models import Backend, DefaultModels, ModelAlias, ModelPolicy, PassThroughRoute
from tenants import money
from tenants.keys import PATTERN, digests, make_clear_text
from tenants.models import ApiKey, IPRule, Limit, Membership, Tenant, User
from tests.factories import make_backend, make_key
from usage.models import Price

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration-as-code.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
TABLES = (
    Tenant,
    User,
    Membership,
    ApiKey,
    Backend,
    IPRule,
    Limit,
    ModelAlias,
    DefaultModels,
    ModelPolicy,
    Price,
    PassThroughRoute,
)


class Applied:
    """A file of its own directory, and what applying it says."""

    def __init__(self, directory):
        self.path = directory / "gateway.yaml"

    def write(self, text):
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(self.path)

    def __call__(self, text, *options):
        out = StringIO()
        call_command("apply", self.write(text), *options, "--json", stdout=out)
        return json.loads(out.getvalue())

    def says(self, text, *options):
        out = StringIO()
        call_command("apply", self.write(text), *options, stdout=out)
        return out.getvalue()

    def refusals(self, text, *options, code=1):
        """The lines that say what is wrong, without the name of the file."""
        before = rows()
        with pytest.raises(CommandError) as refused:
            call_command("apply", self.write(text), *options, stdout=StringIO())
        assert refused.value.returncode == code
        assert rows() == before
        return [line.removeprefix(f"{self.path}: ") for line in str(refused.value).splitlines()]


def rows():
    return {table: list(table.objects.order_by("pk").values()) for table in TABLES}


def exported():
    out = StringIO()
    call_command("export_config", stdout=out)
    return out.getvalue()


@pytest.fixture
def apply(tmp_path):
    return Applied(tmp_path)


@pytest.fixture
def example(apply, monkeypatch):
    """The file that the page prints, with the secrets that it needs."""
    monkeypatch.setenv("NIGHTLY_KEY", make_clear_text()[1])
    (apply.path.parent / "gpu2.secret").write_text("Bearer of-the-second-gpu\n")
    return EXAMPLE


# The file as such


@pytest.mark.parametrize(
    ("raw", "line", "says"),
    [
        (b"", 0, "The file is empty."),
        (b"# nothing\n", 0, "The file is empty."),
        (b"tenants", 1, "The file must hold names of kinds"),
        (b"- a\n", 1, "The file must hold names of kinds"),
        (b"a: [\n", 2, "This is not YAML"),
        (b"a:\n\t- b\n", 2, "There is a tab in the indentation."),
        (b"a: 1\nb: 2\na: 3\n", 3, "a stands in line 1 already."),
        (b"a:\n  - {b: 1, b: 2}\n", 2, "b stands in line 2 already."),
        (b"a: 1\n---\nb: 1\n", 2, "A second document begins here"),
        (b"a: &x [1]\n", 1, "&x: anchors are not taken."),
        (b"a: 1\nb: *x\n", 2, "*x: aliases are not taken."),
        (b"a: !!python/object/apply:os.system [id]\n", 1, "The tag tag:yaml.org,2002:python/object/apply:os.system"),
        (b"a: !!binary aGk=\n", 1, "The tag tag:yaml.org,2002:binary is not taken."),
        (b"? [a]\n: 1\n", 1, "The name of a field must be a text."),
        (b"a: 1\nb: \xff\n", 2, "This is not UTF-8."),
        ("a: 1".encode("utf-16"), 1, "This is not UTF-8."),
        (b"a: 1\nb: \x00\n", 2, "The character '\\x00' cannot stand in YAML."),
        (b"a: " + b"[" * 9 + b"]" * 9, 1, "This is nested more than 8 deep."),
        (b"[" * 1_000_000, 1, "This is nested more than 8 deep."),
        (b"a: " + b" " * MAX_BYTES, 0, "The file is larger than 16 MiB."),
    ],
)
def test_what_is_not_taken_of_yaml_is_named_with_its_line(raw, line, says):
    with pytest.raises(Unreadable) as refused:
        read(raw)
    assert refused.value.problem.line == line
    assert refused.value.problem.text.startswith(says)


def test_a_bomb_of_aliases_is_refused_at_its_first():
    levels = "\n".join(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 9))
    with pytest.raises(Unreadable, match="anchors are not taken"):
        read(f"a0: &a0 lol\n{levels}\n".encode())


def test_a_million_brackets_are_refused(monkeypatch):
    monkeypatch.setattr("proxy.declared.document.MAX_NODES", 1000)
    with pytest.raises(Unreadable, match="more than 1000 values"):
        read(b"a: [" + b"[]," * 2000 + b"]")


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_whatever_the_bytes_are_it_is_read_or_refused(raw):
    try:
        read(raw)
    except Unreadable as exc:
        assert exc.problem.text


@pytest.mark.django_db
def test_a_file_of_100_mb_is_refused_and_not_read_whole(apply):
    with apply.path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(CommandError, match="The file is larger than 16 MiB"):
        call_command("apply", str(apply.path))


@pytest.mark.django_db
def test_a_file_that_is_not_there_is_refused_and_no_file_is_wrong_usage(tmp_path):
    with pytest.raises(CommandError, match="cannot be read: No such file") as refused:
        call_command("apply", str(tmp_path / "nothing.yaml"))
    assert refused.value.returncode == 1


# What entries are refused for


WRONG = [
    ("tenant:\n- name: a\n", ["line 1: there is no kind “tenant”. Did you mean tenants? There are tenants, users"]),
    ("tenants: {name: a}\n", ["line 1: tenants: write a list"]),
    ("tenants:\n- a\n", ["line 2: tenant: write names and values, with name."]),
    ("tenants:\n- enabled: true\n", ["line 2: tenant: name is missing."]),
    ("tenants:\n- name: a\n  enabeld: true\n", ["line 3: tenant: there is no field “enabeld”. Did you mean enabled?"]),
    ("tenants:\n- name: a\n  enabled: yes\n", ["line 3: tenant: enabled: write true or false."]),
    ("tenants:\n- name: null\n", ["line 2: tenant: name: this cannot be empty."]),
    ("tenants:\n- name: a\n  weight: 0\n", ["line 3: tenant: weight: Ensure this value is greater"]),
    ("tenants:\n- name: a\n  latency_class: fast\n", ["line 3: tenant: latency_class: 'fast' is none of"]),
    ("tenants:\n- name: a\n- name: b\n- name: a\n", ["line 4: tenant a stands in line 2 already. Keep one."]),
    ("users:\n- name: a/b\n", ["line 2: user: name: Enter a valid username."]),
    ("users:\n- name: a\n  tenants: {nope: owner}\n", ["line 3: user: tenants: there is no tenant “nope”."]),
    ("users:\n- name: a\n  tenants: {acme: boss}\n", ["line 3: user: tenants: 'boss' is none of owner"]),
    ("keys:\n- {tenant: acme, name: k, user: nobody}\n", ["line 2: key: user: there is no user “nobody”."]),
    ("keys:\n- {tenant: acme, name: k, user: charlie}\n", ["line 2: key: user: charlie is not in acme"]),
    ("keys:\n- {tenant: acme, name: k, models: a}\n", ["line 2: key: models: write a list"]),
    ("keys:\n- {tenant: acme, name: k, expires: 2001-01-01}\n", ["line 2: key: expires: that moment has passed"]),
    ("keys:\n- {tenant: acme, name: k, expires: tomorrow}\n", ["line 2: key: expires: 'tomorrow' is no date or time"]),
    ("keys:\n- {tenant: acme, name: k, secret_env: NOT_SET}\n", ["line 2: key: the variable NOT_SET is not set."]),
    ("keys:\n- {tenant: acme, name: k, secret_file: nothing}\n", ["line 2: key: nothing cannot be read (No such file"]),
    ("keys:\n- {tenant: acme, name: k, digest: abc, prefix: x}\n", ["line 2: key: digest: write 64 hexadecimal"]),
    ("keys:\n- {tenant: acme, name: k, prefix: short}\n", ["line 2: key: prefix: The prefix of a new key has 8"]),
    ("backends:\n- {name: b, url: ftp://x}\n", ["line 2: backend: url: Begin with http:// or https://"]),
    ("backends:\n- {name: b, url: 'http://169.254.169.254'}\n", ["line 2: backend: url: 169.254.169.254 cannot be"]),
    ("backends:\n- {name: b}\n", ["line 2: backend: url: This field is required."]),
    ("backends:\n- {name: b, url: 'http://a:1', slots: 0}\n", ["line 2: backend: slots: Ensure this value is greater"]),
    ("backends:\n- {name: b, url: 'http://a:1', http2: true}\n", ["line 2: backend: An outbound proxy and"]),
    ("ip_rules:\n- {cidr: 10.0.0.1/8, action: allow}\n", ["line 2: IP rule: cidr: 10.0.0.1/8 has host bits set"]),
    ("ip_rules:\n- {cidr: 10.0.0.0/8, action: perhaps}\n", ["line 2: IP rule: action: 'perhaps' is none of"]),
    ("ip_rules:\n- {cidr: 10.0.0.0/8, action: deny, key: acme/nope}\n", ["line 2: IP rule: key: there is no key"]),
    ("limits:\n- {for: all, metric: requests, window: day, amount: 1}\n", ["line 2: limit: for: write default"]),
    ("limits:\n- {for: default, metric: cost, window: day, amount: x}\n", ["line 2: limit: amount: 'x' is no"]),
    ("limits:\n- {for: default, metric: tokens, window: day, amount: 1.5}\n", ["line 2: limit: amount: write a whole"]),
    ("limits:\n- {for: default, metric: tokens, window: week, amount: 1}\n", ["line 2: limit: window: write a number"]),
    ("limits:\n- {for: default, metric: tokens, amount: 1}\n", ["line 2: limit: window: Concurrent calls"]),
    ("aliases:\n- {pattern: a, model: 'a:latest'}\n", ["line 2: alias: both names mean the same model."]),
    ("aliases:\n- {pattern: a, model: '@other'}\n", ["line 2: alias: model: “@other” cannot be the name of a model."]),
    ("default_models:\n- chat: a\n", ["line 2: default models: write names and values"]),
    ("default_models:\n  chat: a b\n", ["line 2: default models: chat: “a b” cannot be the name of a model."]),
    ("model_policies:\n- {pattern: a, keep_alive: long}\n", ["line 2: model policy: keep_alive: Write a duration"]),
    ("model_policies:\n- pattern: a\n  load_options: {num_gpu: many}\n", ["line 3: model policy: load_options: write"]),
    ("pass_through:\n- {path: /api/chat}\n", ["line 2: pass-through route: path: This path is the gateway's own."]),
    ("prices:\n- {model: a, input: 1e-3000}\n", ["line 2: price: input: 1e-3000 has more than 9 decimals."]),
    ("prices:\n- {model: a, input: .inf}\n", ["line 2: price: input: '.inf' is not a decimal number"]),
    ("prices:\n- {model: a, backend: nope}\n", ["line 2: price: backend: there is no backend “nope”."]),
]  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(("text", "says"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_is_said_with_its_line(apply, acme, charlie, text, says):
    found = apply.refusals(text)
    assert len(found) == len(says)
    for line, start in zip(found, says, strict=True):
        assert line.startswith(start)


@pytest.mark.django_db
def test_all_that_is_wrong_is_said_at_once_and_nothing_twice(apply):
    found = apply.refusals(
        "tenants:\n- name: good\n- name: bad\n  weight: 0\n"
        "users:\n- name: u\n  tenants: {bad: owner}\n"  # wrong only because `bad` is
        "keys:\n- {tenant: bad, name: k}\n- {tenant: good, name: k, max_output_tokens: -1}\n"
        "aliases:\n- {pattern: x}\nnonsense: 1\n"
    )
    assert [line.partition(": ")[0] for line in found] == ["line 4", "line 10", "line 12", "line 13"]


@pytest.mark.django_db
def test_hostile_names_are_printed_harmlessly(apply):
    said = apply.says('tenants:\n- name: "red\\e[31m\\nline"\n')
    assert "\x1b" not in said
    assert "+ add tenant red\\x1b[31m line" in said


# What it does


@pytest.mark.django_db
def test_the_example_of_the_page_applies_and_then_changes_nothing(apply, example):
    said = apply(example)
    assert said["changed"] is True
    assert {change["action"] for change in said["changes"]} == {"add"}
    assert re.fullmatch(PATTERN, said["keys"]["research/alice's laptop"])
    assert list(said["keys"]) == ["research/alice's laptop"]
    before = rows()
    assert apply(example)["changes"] == []
    assert "Nothing to change." in apply.says(example, "--prune")
    assert rows() == before


@pytest.mark.django_db
def test_what_export_prints_changes_nothing(apply, example):
    apply(example)
    text = exported()
    assert "of-the-second-gpu" not in text
    assert "Nothing to change." in apply.says(text, "--prune")
    assert yaml.safe_load(text)["limits"][2]["amount"] == "25.5"


@pytest.mark.django_db
def test_an_export_makes_the_same_elsewhere(apply, example):
    apply(example)
    text = exported()
    for table in (IPRule, Limit, ApiKey, Membership, User, Tenant, Backend, ModelAlias, ModelPolicy, Price):
        table.objects.all().delete()
    said = apply(text)
    assert set(said["keys"]) == {"research/alice's laptop", "batch-jobs/nightly"}
    assert all(re.fullmatch(PATTERN, key) for key in said["keys"].values())
    # Without the header of a credential that is not there.
    assert exported() == text


@pytest.mark.django_db
def test_what_an_entry_does_not_say_stays(apply, acme):
    key = make_key(acme, "ci").row
    ApiKey.objects.filter(pk=key.pk).update(enabled=False, max_output_tokens=7)
    Tenant.objects.update(weight=300)
    assert apply("tenants:\n- name: acme\nkeys:\n- {tenant: acme, name: ci}\n")["changes"] == []
    said = apply("keys:\n- {tenant: acme, name: ci, max_output_tokens: null, enabled: true}\n")
    assert said["changes"][0]["fields"] == {"max_output_tokens": [7, None], "enabled": [False, None]}
    key.refresh_from_db()
    assert (key.enabled, key.max_output_tokens, key.switched_off_by) == (True, None, "")


@pytest.mark.django_db
def test_what_a_file_bounds_on_a_key_is_an_administrators(apply, acme, bob):
    key = make_key(acme, "ci", user=bob, models_allowed=["qwen3:*"], models_allowed_by="person").row
    ApiKey.objects.update(expires_at_by="person", max_output_tokens_by="person")
    apply("tenants:\n- name: acme\nkeys:\n- {tenant: acme, name: ci, models: ['qwen3:8b'], expires: 2099-06-15}\n")
    key.refresh_from_db()
    assert (key.models_allowed, key.models_allowed_by) == (["qwen3:8b"], "administrator")
    assert (key.expires_at_by, key.max_output_tokens_by) == ("administrator", "person")


@pytest.mark.django_db
def test_a_secret_is_taken_from_where_the_file_says(apply, acme, monkeypatch):
    prefix, ours = make_clear_text()
    theirs = "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI="
    monkeypatch.setenv("OURS", ours)
    (apply.path.parent / "theirs").write_text(f"{theirs}\n")
    text = (
        "keys:\n- {tenant: acme, name: ours, secret_env: OURS}\n- {tenant: acme, name: theirs, secret_file: theirs}\n"
        f"- {{tenant: acme, name: digest, digest: {'ab' * 32}, prefix: somewhere}}\n"
    )
    said = apply.says(text)
    assert ours not in said
    assert theirs not in said
    found = {key.name: key for key in ApiKey.objects.all()}
    assert (found["ours"].prefix, found["ours"].imported, found["ours"].digest) == (prefix, False, digests(ours)[0])
    assert (found["theirs"].imported, found["theirs"].digest) == (True, digests(theirs)[0])
    assert (found["digest"].prefix, found["digest"].digest) == ("somewhere", b"\xab" * 32)
    assert apply(text)["changes"] == []
    monkeypatch.setenv("OURS", make_clear_text()[1])
    changes = apply(text)["changes"]
    assert [(change["action"], change["name"]) for change in changes] == [("change", "acme/ours")]
    assert changes[0]["fields"]["secret"] == [None, "replaced"]
    assert ApiKey.objects.count() == 3


@pytest.mark.django_db
def test_a_secret_of_a_revoked_key_does_not_come_back(apply, acme, monkeypatch):
    new = make_key(acme, "old")
    new.row.revoke()
    monkeypatch.setenv("OLD", new.clear_text)
    (line,) = apply.refusals("keys:\n- {tenant: acme, name: new, secret_env: OLD}\n")
    assert "is revoked. Use another secret." in line


@pytest.mark.django_db
def test_keys_of_one_name_are_told_apart_by_their_prefix(apply, acme):
    one, two = (make_key(acme, "twin").row for _ in range(2))
    (line,) = apply.refusals("keys:\n- {tenant: acme, name: twin}\n")
    assert all(key.prefix in line for key in (one, two))
    apply(f"keys:\n- {{tenant: acme, name: renamed, prefix: {two.prefix}}}\n")
    two.refresh_from_db()
    assert two.name == "renamed"


@pytest.mark.django_db
def test_the_credential_of_a_backend_is_set_replaced_kept_and_forgotten(apply, monkeypatch):
    text = "backends:\n- {name: b, url: 'http://127.0.0.1:9', credential_header: X-Key, credential_env: SECRET}\n"
    monkeypatch.setenv("SECRET", "one-secret")
    assert "one-secret" not in apply.says(text)
    assert apply(text)["changes"] == []
    monkeypatch.setenv("SECRET", "another-secret")
    assert apply(text)["changes"][0]["fields"] == {"credential": [None, "replaced"]}
    assert apply("backends:\n- {name: b, slots: 2}\n")["changes"][0]["fields"] == {"slots": [None, 2]}
    assert Backend.objects.get().credential_encrypted
    (line,) = apply.refusals("backends:\n- {name: b, url: 'http://127.0.0.1:10'}\n")
    assert "The address changes: enter the credential for the new one again" in line
    apply("backends:\n- {name: b, credential_header: null}\n")
    assert not Backend.objects.get().credential_encrypted


@pytest.mark.django_db
def test_the_server_of_the_environment_is_not_changed_or_taken_away(apply):
    make_backend("default", url="http://127.0.0.1:11434", set_by_environment=True)
    (line,) = apply.refusals("backends:\n- {name: default, url: 'http://127.0.0.1:1'}\n")
    assert "the environment owns this one" in line
    assert apply("backends: []\n", "--prune", "--yes")["changes"] == []
    assert "backends:" not in exported()


@pytest.mark.django_db
def test_a_price_in_force_is_replaced_and_not_changed(apply):
    apply("prices:\n- {model: llama3.2, input: 0.15, output: 0.6, watts: 100}\n")
    said = apply("prices:\n- {model: LLAMA3.2, input: 0.20}\n")
    assert said["changes"][0]["fields"] == {"input": ["0.15", "0.2"]}
    assert list(Price.objects.order_by("pk").values_list("input_nano", "output_nano", "watts")) == [
        (150_000_000, 600_000_000, 100), (200_000_000, 600_000_000, 100),
    ]  # fmt: skip
    text = "prices:\n- {model: llama3.2, input: 0.20}\n- {model: llama3.2, input: 0.30, valid_from: 2999-01-01}\n"
    assert apply(text)["changes"][0]["action"] == "add"
    assert apply(text)["changes"] == []
    assert apply(exported(), "--prune")["changes"] == []
    assert apply("prices: []\n", "--prune")["changes"][0]["action"] == "delete"
    assert Price.objects.filter(valid_from__gt=timezone.now()).count() == 0
    assert "stays: price llama3.2:latest, which is in force" in apply.says("prices: []\n", "--prune")


@pytest.mark.django_db
def test_the_tenants_of_a_user_are_those_that_are_named(apply, acme, other, bob):
    own, service = make_key(acme, "bob's", user=bob).row, make_key(acme, "ci").row
    text = "users:\n- {name: bob, tenants: {other: viewer}}\n"
    assert apply.refusals(text) == [
        "This would revoke the key acme/bob's. Look with --dry-run, then give --yes."
    ]  # fmt: skip
    actions = [(change["action"], change["kind"]) for change in apply(text, "--yes")["changes"]]
    assert actions == [("change", "user"), ("revoke", "key")]
    assert [(row.tenant.name, row.role) for row in bob.memberships.all()] == [("other", "viewer")]
    assert [ApiKey.objects.get(pk=key.pk).state for key in (own, service)] == ["revoked", "active"]
    assert apply(text)["changes"] == []


@pytest.mark.django_db
def test_a_key_that_goes_with_its_user_is_not_brought_back_by_its_own_entry(apply, acme, other, bob):
    key = make_key(acme, "bob's", user=bob).row
    text = f"users:\n- {{name: bob, tenants: {{}}}}\nkeys:\n- {{tenant: acme, name: x, prefix: {key.prefix}}}\n"
    (line,) = apply.refusals(text, "--yes")
    assert f"the key {key.prefix} is revoked" in line


# Taking away


@pytest.mark.django_db
def test_prune_takes_away_what_the_file_does_not_name_of_the_kinds_it_speaks_of(apply, example, root):
    apply(example)
    said = apply("tenants:\n- name: research\nlimits: []\naliases: []\nusers:\n- name: alice\n", "--prune", "--yes")
    assert [(change["action"], change["kind"], change["name"]) for change in said["changes"]] == [
        ("delete", "alias", "gpt-4o"),
        ("delete", "limit", "requests per minute for default"),
        ("delete", "limit", "requests per 30 s for address"),
        ("delete", "limit", "cost per month for tenant research"),
        ("delete", "limit", "concurrent for key batch-jobs/nightly"),
        ("switch off", "user", "bob"),
        ("archive", "tenant", "batch-jobs"),
    ]
    assert Tenant.objects.current().get().name == "research"
    assert set(User.objects.filter(is_active=True).values_list("username", flat=True)) == {"alice", "root"}
    assert ApiKey.objects.filter(revoked_at=None).count() == 2
    assert Backend.objects.current().count() == 2
    assert ModelPolicy.objects.exists()


@pytest.mark.django_db
def test_without_prune_nothing_is_taken_away(apply, example):
    apply(example)
    assert apply("tenants: []\nkeys: []\nbackends: []\nlimits: []\n")["changes"] == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keys: []\n", "revoke the key acme/ci"),
        ("tenants: []\n", "archive the tenant acme"),
        ("users: []\n", "switch off the user bob"),
    ],
)
def test_keys_tenants_and_users_go_only_when_it_was_said(apply, acme, bob, text, named):
    make_key(acme, "ci")
    (line,) = apply.refusals(text, "--prune")
    assert line == f"This would {named}. Look with --dry-run, then give --yes."
    assert apply(text, "--prune", "--dry-run")["changed"] is False
    assert apply(text, "--prune", "--yes")["changed"] is True
    assert apply(text, "--prune")["changes"] == []


@pytest.mark.django_db
@pytest.mark.parametrize(("answer", "state"), [("y", "revoked"), ("", "active")])
def test_at_a_terminal_it_asks(apply, acme, monkeypatch, answer, state):
    key = make_key(acme, "ci").row
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    try:
        call_command("apply", apply.write("keys: []\n"), "--prune", stdout=StringIO(), stderr=StringIO())
    except CommandError as exc:
        assert "Nothing was changed." in str(exc)
    key.refresh_from_db()
    assert key.state == state


@pytest.mark.django_db
def test_what_was_archived_does_not_come_back_by_being_named(apply, acme):
    make_backend("gone").archive()
    acme.archive()
    found = apply.refusals("tenants:\n- name: acme\nbackends:\n- {name: gone, slots: 2}\n")
    assert [line.partition(": a ")[2] for line in found] == [
        "tenant of this name was deleted. Restore it in the admin, or choose another name.",
        "backend of this name was deleted. Restore it in the admin, or choose another name.",
    ]


@pytest.mark.django_db
def test_the_limits_that_owners_set_are_theirs(apply, acme):
    Limit.objects.create(scope="tenant", tenant=acme, metric="requests", window="day", amount=5, managed_by=acme)
    assert "limits:" not in exported()
    assert exported().endswith("limits that owners of tenants set (1), and IP rules (0).\n")
    assert apply(exported())["changes"] == []
    assert apply("limits: []\n", "--prune", "--yes")["changes"] == []
    apply("limits:\n- {for: {tenant: acme}, metric: requests, window: day, amount: 9}\n")
    assert sorted(Limit.objects.values_list("amount", flat=True)) == [5, 9]


# A dry run


@pytest.mark.django_db
def test_a_dry_run_says_the_same_and_changes_nothing(apply, example):
    before = rows()
    dry = apply(example, "--dry-run")
    assert rows() == before
    assert (dry["changed"], dry["dry_run"], dry["keys"]) == (False, True, {})
    assert "This was a dry run" in apply.says(example, "--dry-run")
    real = apply(example)

    def comparable(said):
        return [{**change, "fields": {k: v for k, v in change["fields"].items() if k != "prefix"}} for change in said]

    assert comparable(dry["changes"]) == comparable(real["changes"])


@pytest.mark.django_db
def test_a_change_shows_both_sides(apply, acme):
    said = apply.says("tenants:\n- {name: acme, weight: 7, enabled: false}\n", "--dry-run")
    assert said.splitlines() == [
        "~ change tenant acme",
        "    enabled: false",
        "    weight: 7",
        "0 added, 1 changed, 0 taken away. This was a dry run: nothing was changed.",
    ]


# Both databases


CONFIG = """\
tenants:
- name: a
keys:
- {tenant: a, name: k}
limits:
- {for: {key: a/k}, metric: cost, window: 60, amount: 1}
"""


def test_it_is_all_or_nothing_on_both_databases(database, apply):
    apply.refusals(f"{CONFIG}aliases:\n- {{pattern: x, model: y z}}\n")
    assert apply(CONFIG, "--dry-run")["changed"] is False
    assert not Tenant.objects.exists()
    assert apply(CONFIG)["changed"] is True
    before = rows()
    assert apply(CONFIG)["changes"] == []
    assert apply(exported(), "--prune")["changes"] == []
    assert rows() == before


# Any configuration


NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=("C", "Z")), min_size=1, max_size=8
)
WORDS = st.text("abcdefghij", min_size=1, max_size=6)
MONEY = st.integers(0, 10**15).map(lambda nano: f"{nano // 10**9}.{nano % 10**9:09d}")


def entry(**parts):
    """Required parts are given as strategies, optional ones as (strategy,): they may be left out."""
    required = {name: part for name, part in parts.items() if not isinstance(part, tuple)}
    optional = {name: part[0] for name, part in parts.items() if isinstance(part, tuple)}
    return st.fixed_dictionaries(required, optional=optional)


def listed(one, *by):
    return st.lists(one, max_size=3, unique_by=lambda item: tuple(str(item.get(name, "")).lower() for name in by))


@st.composite
def configurations(draw):
    tenants = draw(listed(entry(
        name=NAMES, enabled=(st.booleans(),), weight=(st.integers(1, 10_000),), latency_class=(st.just("batch"),),
    ), "name"))  # fmt: skip
    said = {"tenants": tenants}
    homes = [tenant["name"] for tenant in tenants]
    roles = st.sampled_from(["owner", "member"])
    said["users"] = draw(listed(entry(
        name=WORDS, first_name=(NAMES,), active=(st.booleans(),),
        tenants=st.dictionaries(st.sampled_from(homes), roles) if homes else st.just({}),
    ), "name"))  # fmt: skip
    if homes:
        said["keys"] = draw(listed(entry(
            tenant=st.sampled_from(homes), name=NAMES, enabled=(st.booleans(),), models=(st.lists(NAMES, max_size=2),),
            may_list=(st.booleans(),), max_output_tokens=(st.integers(1, 10**6),), weight=(st.integers(1, 10_000),),
            expires=(st.just("2100-01-01T00:00:00+00:00"),),
        ), "tenant", "name"))  # fmt: skip
        said["limits"] = draw(listed(entry(**{
            "for": st.sampled_from(["default", "address", *({"tenant": name} for name in homes)]),
            "metric": st.sampled_from(["requests", "tokens"]), "amount": st.integers(0, 2**40),
            "window": st.integers(1, 2**31 - 1) | st.sampled_from(["minute", "hour", "day", "month"]),
            "mode": (st.just("shadow"),), "model": (WORDS,),
        }), "for", "metric", "window", "model"))  # fmt: skip
        said["ip_rules"] = draw(listed(entry(
            cidr=st.ip_addresses(network="10.0.0.0/8").map(str), action=st.sampled_from(["allow", "deny"]),
            tenant=(st.sampled_from(homes),), note=(NAMES,),
        ), "cidr"))  # fmt: skip
    said["model_policies"] = draw(listed(entry(
        pattern=WORDS, num_ctx=(st.integers(4, 10**6),), keep_alive=(st.sampled_from(["30m", "-1", "1h30m"]),),
        load_options=(st.dictionaries(WORDS, st.integers(-9, 9) | st.booleans() | st.floats(-1e6, 1e6)),),
    ), "pattern"))  # fmt: skip
    said["aliases"] = draw(listed(entry(
        pattern=WORDS.map("a-{}".format), model=WORDS.map("m-{}:8b".format), enabled=(st.booleans(),),
    ), "pattern"))  # fmt: skip
    said["prices"] = draw(listed(entry(
        model=WORDS.map("{}:latest".format), input=MONEY, output=(MONEY,), watts=(st.integers(0, 999),),
    ), "model"))  # fmt: skip
    return said


def as_meant(said):
    """With what is the default left out, money in its shortest form, and in one order."""
    return {
        kind.section: sorted(meant_by(item, kind(World({}, Path()))) for item in said.get(kind.section) or ())
        for kind in KINDS
        if kind.required
    }


def meant_by(item, kind):
    item = {
        name: money.shown(money.to_nano(text)) if name in ("input", "output") else text for name, text in item.items()
    }
    if kind.section == "ip_rules":
        item["cidr"] = str(ip_network(item["cidr"]))
    kept = {
        name: value
        for name, value in item.items()
        if name != "prefix" and (name in kind.required or value not in (kind.fields[name].default, "0"))
    }
    return json.dumps(kept, sort_keys=True)


@pytest.mark.django_db
@given(said=configurations())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_configuration_is_exported_as_it_was_applied_and_applies_once(tmp_path_factory, said):
    apply = Applied(tmp_path_factory.mktemp("any"))
    text = yaml.dump(said, Dumper=PlainDumper, allow_unicode=True, sort_keys=False)
    with transaction.atomic():
        before = rows()
        apply(text, "--dry-run")
        assert rows() == before
        apply(text)
        out = exported()
        assert as_meant(yaml.safe_load(out)) == as_meant(said)
        after = rows()
        assert apply(text)["changes"] == []
        assert apply(out, "--prune")["changes"] == []
        assert rows() == after
        transaction.set_rollback(True)


# The page


def test_the_page_names_every_field_and_no_other():
    table = {kind: re.findall(r"`(\w+)`", fields) for kind, fields in re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", PAGE)}
    assert {name: fields for name, fields in table.items() if name in {kind.section for kind in KINDS}} == {
        kind.section: list(kind(World({}, Path())).known) for kind in KINDS
    }
    for kind in KINDS:
        assert set(re.findall(r"\*\*`(\w+)`\*\*", PAGE)) >= set(kind.required)


# Columns that no file says, because machines, people or the environment do.
NOT_DECLARED = {
    Tenant: {"created_at", "archived_at"},
    User: {"password", "last_login", "date_joined", "is_staff", "is_superuser"},
    ApiKey: {
        "digest", "previous_digest", "previous_expires_at", "imported", "switched_off_by", "revoked_at", "created_at",
        "created_by", "expires_at_by", "models_allowed_by", "max_output_tokens_by",
    },
    Backend: {
        "archived_at", "created_at", "set_by_environment", "credential_encrypted", "client_key_encrypted",
        "proxy_credential_encrypted",
    },
    IPRule: {"by_owners", "created_at"},
    Limit: {"tenant", "user", "key", "window_seconds", "managed_by", "created_at"},
    ModelAlias: {"created_at"},
    DefaultModels: {"aliases_seeded_at"},
    ModelPolicy: {"created_at"},
    PassThroughRoute: {"created_at"},
    Price: {"created_at"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.section)
def test_every_column_of_a_kind_can_be_declared_or_is_known_not_to(kind):
    """A new column: add it to the fields of its kind in proxy/declared/kinds, and to the page; or to the list above."""
    columns = {column.name for column in kind.model._meta.concrete_fields if not column.primary_key}
    declared = {made.attribute for made in kind(World({}, Path())).fields.values()}
    assert columns - declared - NOT_DECLARED.get(kind.model, set()) == set()
