"""The shell administration that scripts rely on (design §10): results, refusals, repetition, exit codes, --json."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from proxy.models import Backend, ModelAlias, ModelPolicy
from tenants.keys import PATTERN, has_our_form
from tenants.models import ApiKey, IPRule, Limit, Membership, Tenant, User
from tests.factories import make_backend, make_key, make_limit, make_tenant
from usage.models import Price

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery staple"

pytestmark = pytest.mark.django_db


def run(line, *more):
    """Standard output of a command, without its line break."""
    out, err = StringIO(), StringIO()
    call_command(*line.split(), *more, stdout=out, stderr=err)
    assert err.getvalue() == ""
    return out.getvalue().removesuffix("\n")


def run_json(line, *more):
    return json.loads(run(line, *more, "--json"))


def refusal(line, *more, code=1):
    """The one line that a refused command says."""
    out = StringIO()
    with pytest.raises(CommandError) as refused:
        call_command(*line.split(), *more, stdout=out)
    assert refused.value.returncode == code
    assert out.getvalue() == ""
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def cast(acme, bob, charlie):
    """acme, with bob in it; charlie is of other."""


# Whatever is said twice is done once, is no error, and says so.

REPEATABLE = [
    ("create_tenant new", Tenant),
    ("create_user dora --tenant acme --role viewer", Membership),
    (f"create_admin boss --password {PASSWORD.replace(' ', '-')}", User),
    ("add_backend gpu http://10.0.0.5:11434 --slots 2 --transport httpx --context-length 8192", Backend),
    ("set_alias gpt-* llama3.2", ModelAlias),
    ("add_ip_rule 10.0.0.0/8 allow --note office", IPRule),
    ("add_ip_rule 2001:DB8::/32 deny --tenant acme", IPRule),
    ("set_limit --tenant acme --metric tokens --window day --amount 1000", Limit),
    ("set_limit --user bob --metric cost --window month --amount 25.50", Limit),
    ("set_limit --default --metric concurrent --amount 4", Limit),
    ("set_limit --address --metric requests --window 30 --amount 25 --shadow", Limit),
    ("set_price llama3.2 --input 0.15 --output 0.60", Price),
    ("set_model_policy * --num-ctx 8192 --keep-alive 30m --max-output-tokens 2048", ModelPolicy),
]


@pytest.mark.parametrize(("line", "model"), REPEATABLE, ids=[line for line, _ in REPEATABLE])
def test_again_changes_nothing(cast, line, model):
    before = model.objects.count()
    assert run_json(line)["changed"] is True
    rows = list(model.objects.order_by("pk").values())
    assert len(rows) == before + 1
    assert run_json(line)["changed"] is False
    assert "\n" not in run(line)
    assert list(model.objects.order_by("pk").values()) == rows


@pytest.mark.parametrize(("line", "model"), REPEATABLE, ids=[line for line, _ in REPEATABLE])
def test_a_result_is_one_line(cast, line, model):
    result = run(line)
    assert result
    assert "\n" not in result


# What is refused says what to do next, and changes nothing.

REFUSED = [
    ("create_user x --tenant nope --role owner", "manage.py create_tenant nope"),
    ("create_user a/b --tenant acme --role owner", "Enter a valid username"),
    ("create_key --tenant nope --name k", "manage.py create_tenant nope"),
    ("create_key --tenant acme --name k --user nobody", "manage.py create_user nobody"),
    ("create_key --tenant acme --name k --user charlie", "charlie is not in acme"),
    ("create_key --tenant acme --name k --expires 2020-01-01", "has passed"),
    ("create_key --tenant acme --name k --max-output-tokens 0", "max output tokens: "),
    ("create_key --tenant acme --name k --max-output-tokens -5", "max output tokens: "),
    (f"create_key --tenant acme --name {'k' * 101}", "at most 100 characters"),
    (f"create_tenant {'t' * 101}", "at most 100 characters"),
    ("revoke_key nonesuch", "no key with the prefix"),
    ("create_admin --password short", "too short"),
    ("create_admin bob --password x", "Choose another name"),
    ("add_backend g ftp://10.0.0.5", "Begin with http"),
    ("add_backend g http://user:pw@10.0.0.5", "credential has a field"),
    ("add_backend g http://10.0.0.5/path", "only scheme, host and port"),
    ("add_backend g http://2130706433", "usual form"),
    ("add_backend g http://169.254.169.254", "link-local, metadata"),
    ("add_backend g http://[::ffff:169.254.169.254]", "link-local, metadata"),
    ("add_backend g http://10.0.0.5:11434 --slots 0", "slots: "),
    ("add_backend g http://10.0.0.5:11434 --slots -1", "slots: "),
    ("disable_backend nope", "There are: none."),
    ("set_alias llama3.2 llama3.2:latest", "same model"),
    ("set_alias gpt-4 ../x", "cannot be the name of a model"),
    ("add_ip_rule 10.1.2.3/8 allow", "Write the network 10.0.0.0/8"),
    ("add_ip_rule office allow", "a network such as 10.0.0.0/8"),
    ("add_ip_rule 10.0.0.0/8 allow --tenant nope", "manage.py create_tenant nope"),
    ("add_ip_rule 10.0.0.0/8 allow --key nope", "no key with the prefix"),
    ("set_limit --tenant nope --metric tokens --window day --amount 1", "manage.py create_tenant nope"),
    ("set_limit --tenant acme --metric tokens --amount 1", "Concurrent calls have no window"),
    ("set_limit --tenant acme --metric tokens --window day --amount 1 --model qwen*", "not for a pattern"),
    ("set_limit --tenant acme --metric concurrent --window day --amount 1", "Concurrent calls have no window"),
    ("set_limit --tenant acme --metric tokens --window day --amount 1 --raise-to 5", "--until together"),
    ("set_limit --tenant acme --metric tokens --window day --amount 5 --raise-to 5 --until 2099-01-01", "raises the"),
    ("set_limit --tenant acme --metric tokens --window minute --amount 5 --alert", "Alerts go with calendar"),
    ("set_limit --tenant acme --metric tokens --window day --amount -1", "greater than or equal to 0"),
    ("set_limit --tenant acme --metric tokens --window day --amount many", "not a whole number"),
    ("set_limit --tenant acme --metric tokens --window day --amount 99999999999999999999", "less than or equal"),
    ("set_limit --tenant acme --metric cost --window day --amount 0.0000000001", "more than 9 decimals"),
    ("set_price m --input -1 --output 0", "use 0 or more"),
    ("set_price m --input 0 --output x", "not a decimal number"),
    ("set_price m --input NaN --output 0", "use 0 or more"),
    ("set_price m --input 0 --output 1e12", "more than the most"),
    ("set_price m --input 0 --output 0 --backend nope", "manage.py add_backend nope"),
    ("set_model_policy * --num-ctx 1", "num ctx: "),
    ("set_model_policy * --keep-alive soon", "keep alive: "),
    ("set_model_policy * --max-output-tokens 0", "max output tokens: "),
]
TABLES = (Tenant, User, Membership, ApiKey, IPRule, Limit, Backend, ModelAlias, ModelPolicy, Price)


@pytest.mark.parametrize(("line", "hint"), REFUSED, ids=[line[:60] for line, _ in REFUSED])
def test_a_refusal_is_one_line_that_helps_and_nothing_is_done(cast, line, hint):
    before = [list(model.objects.order_by("pk").values()) for model in TABLES]
    assert hint in refusal(line)
    assert [list(model.objects.order_by("pk").values()) for model in TABLES] == before


@pytest.mark.parametrize("line", ["create_tenant", "add_backend"])
def test_what_was_archived_does_not_come_back_unseen(line):
    make_tenant("gone").archive()
    make_backend("gone").archive()
    url = "" if line == "create_tenant" else " http://10.0.0.5:11434"
    assert "Restore it in the admin" in refusal(f"{line} gone{url}")


def test_an_empty_name_is_refused_not_taken_for_none():
    """As from a variable of a shell that is not set."""
    assert "no tenant" in refusal("add_ip_rule 10.0.0.0/8 allow", "--tenant", "")
    assert "no key" in refusal("add_ip_rule 10.0.0.0/8 allow", "--acts-as", "")
    assert "blank" in refusal("create_tenant", "")


def test_hostile_names_reach_the_terminal_escaped():
    assert "\x1b" not in refusal("create_key --name k --tenant", "\x1b[2Jx")
    assert "\x1b" not in run("create_tenant", "a\x1b[2Jb")


# Each command for itself.


def test_create_key_prints_only_the_key(cast):
    key = run("create_key --tenant acme --name ci --user bob --models llama3.2,qwen3:* --manage --max-output-tokens 99")
    assert re.fullmatch(PATTERN, key)
    assert has_our_form(key.encode())
    row = ApiKey.objects.get()
    assert row.prefix == key.split("_")[1]
    assert (row.name, row.user.username, row.may_manage, row.max_output_tokens) == ("ci", "bob", True, 99)
    assert row.models_allowed == ["llama3.2", "qwen3:*"]


def test_create_key_without_options_is_a_plain_service_key(cast):
    answer = run_json("create_key --tenant acme --name ci")
    row = ApiKey.objects.get()
    assert (answer["prefix"], answer["tenant"], answer["name"]) == (row.prefix, "acme", "ci")
    assert (row.user, row.may_manage, row.expires_at, row.models_allowed) == (None, False, None, [])


@pytest.mark.parametrize(
    "text", ["2099-12-31", "2099-12-31T00:00", "2099-12-30T23:00:00Z", "2099-12-31T00:00:00+01:00"]
)
def test_a_key_expires_in_the_zone_of_the_installation(cast, settings, text):
    settings.TIME_ZONE = "Europe/Berlin"
    run(f"create_key --tenant acme --name ci --expires {text}")
    assert ApiKey.objects.get().expires_at.isoformat() == "2099-12-30T23:00:00+00:00"


def test_a_disabled_user_gets_no_key(cast, bob):
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert "switched off" in refusal("create_key --tenant acme --name k --user bob")


@pytest.mark.parametrize("form", ["{prefix}", "ogw_{prefix}_", "{clear_text}"])
def test_revoke_key_takes_what_one_has(form):
    new = make_key()
    text = form.format(prefix=new.row.prefix, clear_text=new.clear_text)
    answer = run(f"revoke_key {text}")
    assert new.clear_text.split("_")[2] not in answer
    new.row.refresh_from_db()
    assert new.row.state == "revoked"
    at = new.row.revoked_at
    assert run_json(f"revoke_key {text}")["changed"] is False
    new.row.refresh_from_db()
    assert new.row.revoked_at == at


def test_a_revoked_key_gets_no_rules():
    new = make_key()
    new.row.revoke()
    assert "is revoked" in refusal(f"add_ip_rule 10.0.0.0/8 allow --acts-as {new.row.prefix}")
    assert "is revoked" in refusal(f"set_limit --key {new.row.prefix} --metric tokens --window day --amount 1")


def test_a_network_can_act_as_a_key():
    row = make_key().row
    run(f"add_ip_rule 127.0.0.0/8 allow --acts-as {row.prefix}")
    assert IPRule.objects.get().acts_as == row
    assert "Only a rule that allows" in refusal(f"add_ip_rule 127.0.0.0/8 deny --acts-as {row.prefix}")


def test_an_expired_rule_does_not_count_as_there():
    run("add_ip_rule 10.0.0.0/8 deny")
    IPRule.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert run_json("add_ip_rule 10.0.0.0/8 deny")["changed"] is True


def test_set_limit_raises_an_amount_for_a_while_and_leaves_what_is_not_said(cast):
    command = "set_limit --tenant acme --metric cost --window month --amount 10"
    run(f"{command} --alert --raise-to 12.50 --until 2099-01-01")
    run(command)
    row = Limit.objects.get()
    assert (row.amount, row.override_amount, row.alert) == (10_000_000_000, 12_500_000_000, True)
    run(f"{command} --no-alert")
    assert not Limit.objects.get().alert


def test_set_limit_leaves_the_limits_of_owners_alone(cast):
    acme = Tenant.objects.get(name="acme")
    owners = Limit.objects.create(scope="tenant", tenant=acme, metric="tokens", window="day", amount=5, managed_by=acme)
    run("set_limit --tenant acme --metric tokens --window day --amount 1000")
    owners.refresh_from_db()
    assert (owners.amount, Limit.objects.count()) == (5, 2)


def test_set_limit_changes_the_row_of_the_same_kind_only(cast):
    run("set_limit --tenant acme --metric tokens --window day --amount 1000")
    run("set_limit --tenant acme --metric tokens --window day --amount 2000 --shadow")
    limit = Limit.objects.get()
    assert (limit.amount, limit.mode) == (2000, "shadow")
    for other in ("--window hour", "--window day --model llama3.2", "--window 86400"):
        run(f"set_limit --tenant acme --metric tokens --amount 5 {other}")
    assert Limit.objects.count() == 4


def test_a_budget_is_written_in_units_of_the_currency(cast):
    assert "25.5 EUR per month for acme" in run("set_limit --tenant acme --metric cost --window month --amount 25.50")
    assert Limit.objects.get().amount == 25_500_000_000


def test_contradicting_limits_are_not_guessed_at(cast, acme):
    make_limit(1, tenant=acme)
    make_limit(2, tenant=acme)
    assert "Delete all but one" in refusal("set_limit --tenant acme --metric requests --window minute --amount 3")


def test_set_price_keeps_the_past_and_the_other_parts():
    run("set_price Llama3.2 --input 0.15 --output 0.60")
    Price.objects.update(watts=300, kwh_nano=7)
    run("set_price llama3.2:latest --input 0.000003 --output 0.6")
    old, new = Price.objects.order_by("valid_from")
    assert (old.model, old.input_nano, old.output_nano) == ("llama3.2:latest", 150_000_000, 600_000_000)
    assert (new.model, new.input_nano, new.output_nano) == ("llama3.2:latest", 3_000, 600_000_000)
    assert (new.watts, new.kwh_nano) == (300, 7)


def test_a_price_of_one_backend_is_a_row_of_its_own():
    make_backend("gpu1")
    run("set_price * --input 1 --output 1")
    run("set_price * --input 2 --output 2 --backend gpu1")
    assert dict(Price.objects.values_list("backend", "input_nano")) == {"": 10**9, "gpu1": 2 * 10**9}


def test_add_backend_updates_what_is_given_and_enables():
    run("add_backend gpu http://10.0.0.5 --slots 4")
    run("disable_backend gpu")
    assert run_json("disable_backend gpu")["changed"] is False
    assert "Changed" in run("add_backend gpu https://gpu.example.org/")
    backend = Backend.objects.get()
    assert (backend.url, backend.slots, backend.enabled) == ("https://gpu.example.org:443", 4, True)


def test_set_model_policy_keeps_what_is_not_given():
    run("set_model_policy qwen3:* --num-ctx 8192")
    run("set_model_policy qwen3:* --keep-alive -1")
    policy = ModelPolicy.objects.get()
    assert (policy.num_ctx, policy.keep_alive) == (8192, "-1")


def test_create_user_changes_the_role(cast, bob):
    assert "is now owner" in run("create_user bob --tenant acme --role owner")
    assert bob.memberships.get().role == "owner"
    assert "already is owner" in run("create_user bob --tenant acme --role owner")


def test_a_new_user_cannot_sign_in_before_they_have_a_password(cast):
    assert "manage.py changepassword dora" in run("create_user dora --tenant acme --role member")
    assert not User.objects.get(username="dora").has_usable_password()


def test_create_admin_takes_the_password_from_the_environment(monkeypatch, tmp_path, client):
    monkeypatch.setenv("ADMIN_PASSWORD", PASSWORD)
    run("create_admin one")
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    monkeypatch.setenv("ADMIN_PASSWORD_FILE", str(tmp_path / "secret"))
    monkeypatch.delenv("ADMIN_PASSWORD")
    run("create_admin two")
    for name in ("one", "two"):
        assert client.login(username=name, password=PASSWORD)


def test_create_admin_takes_the_password_from_standard_input(monkeypatch, client):
    monkeypatch.setattr(sys, "stdin", StringIO(PASSWORD + "\n"))
    run("create_admin")
    assert client.login(username="admin", password=PASSWORD)
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    assert "Set ADMIN_PASSWORD" in refusal("create_admin another")


def test_create_admin_undoes_nothing_that_was_decided_since(client):
    run("create_admin boss --password", PASSWORD)
    assert run_json("create_admin boss --password another-pass-phrase")["changed"] is False
    assert client.login(username="boss", password=PASSWORD)
    User.objects.update(is_active=False)
    assert "switched off" in refusal("create_admin boss --password", PASSWORD)


# Wrong usage is argparse's, but for what it cannot tell.


def test_a_policy_of_nothing_is_wrong_usage():
    assert "at least one of" in refusal("set_model_policy *", code=2)


WRONG = [
    "create_tenant",
    "create_user x --tenant acme --role boss",
    "create_key --tenant acme",
    "create_key --tenant acme --name k --expires tomorrow",
    "create_key --tenant acme --name k --expires 2026-02-30",
    "create_key --tenant acme --name k --max-output-tokens x",
    "add_ip_rule 10.0.0.0/8 permit",
    "add_ip_rule 10.0.0.0/8 allow --tenant a --key b",
    "add_backend gpu http://10.0.0.5 --transport pigeon",
    "set_limit --metric tokens --window day --amount 1",
    "set_limit --default --address --metric tokens --window day --amount 1",
    "set_limit --default --metric tokens --window week --amount 1",
    "set_limit --default --metric tokens --window 0 --amount 1",
    "set_limit --default --metric tokens --window ² --amount 1",
    "set_limit --default --metric tears --window day --amount 1",
    "set_price m --input 1",
]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_told_before_anything_is_done(line):
    from django.core.management import ManagementUtility

    with pytest.raises(SystemExit) as exit_of:
        ManagementUtility(["manage.py", *line.split()]).execute()
    assert exit_of.value.code == 2


# The real thing: a process, its two streams and its exit code.


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    environment = {
        **os.environ,
        "DATA_DIR": str(tmp_path_factory.mktemp("data")),
        "PYTHONWARNINGS": "error",
        "LANG": "C.UTF-8",
    }
    environment.pop("DATABASE_URL", None)

    def manage(*arguments, stdin=""):
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return manage


def test_exit_codes_and_streams_of_a_real_process(shell):
    early = shell("create_tenant", "acme")
    assert (early.returncode, early.stdout) == (1, "")
    assert "manage.py migrate" in early.stderr
    assert early.stderr.count("\n") == 1

    assert shell("migrate", "--verbosity=0").returncode == 0
    done = shell("create_tenant", "acme")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Created the tenant acme.\n", "")
    again = shell("create_tenant", "acme", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"tenant": "acme", "id": 1, "changed": False})
    key = shell("create_key", "--tenant", "acme", "--name", "ci")
    assert re.fullmatch(PATTERN + r"\n", key.stdout)
    refused = shell("create_key", "--tenant", "nope", "--name", "ci")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == ("Refused: There is no tenant “nope”. Create it with: manage.py create_tenant nope\n")
    wrong = shell("create_user", "x", "--tenant", "acme", "--role", "boss")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    policy = shell("set_model_policy", "*")
    assert (policy.returncode, policy.stdout) == (2, "")
    assert policy.stderr.startswith("Refused: Give at least one of ")
    for words in (["purge_cache"], ["apply", "gone.yaml"], ["serve", "--tls-cert", "gone.pem"]):
        said = shell(*words).stderr
        assert said.startswith("Refused: "), (words, said)
        assert said.count("\n") == 1, (words, said)
    admin = shell("create_admin", stdin=PASSWORD + "\n")
    assert (admin.returncode, admin.stderr) == (0, "")
    not_utf8 = shell("create_tenant", os.fsdecode(b"\xff"))
    assert (not_utf8.returncode, not_utf8.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in not_utf8.stderr


def test_what_is_to_be_there_is_not_said_to_need_making(acme, other):
    for line in (
        "purge_cache --tenant nosuch",
        "list_keys --tenant nosuch",
        "remove_ip_rule 10.0.0.0/8 --tenant nosuch",
    ):
        assert refusal(line) == "There is no tenant “nosuch”. There are: acme, other."
    assert "manage.py list_keys --all" in refusal("revoke_key zzz")


def test_a_dead_database_is_a_refusal(shell, postgres_url):
    environment_url = postgres_url.replace("/test_", "/gone_")
    answer = subprocess.run(
        [sys.executable, "manage.py", "create_tenant", "x"],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": environment_url}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr.startswith("Refused: The database cannot do it")
    assert answer.stderr.count("\n") == 1


def test_the_shell_administration_works_on_postgresql(postgres_url):
    def manage(*arguments):
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env={**os.environ, "DATABASE_URL": postgres_url}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    for arguments in (
        ["create_tenant", "acme"],
        ["create_key", "--tenant", "acme", "--name", "ci"],
        ["set_limit", "--tenant", "acme", "--metric", "cost", "--window", "month", "--amount", "9.99"],
        ["set_price", "*", "--input", "0.1", "--output", "0.2"],
        ["reconcile"],
    ):
        answer = manage(*arguments)
        assert (answer.returncode, answer.stderr) == (0, ""), arguments


def test_an_export_into_a_closed_pipe_ends_quietly(tmp_path):
    environment = {**os.environ, "DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "gateway_site.settings"}
    script = (
        "import django; django.setup()\n"
        "from django.core.management import call_command; call_command('migrate', verbosity=0)\n"
        "from tests.factories import make_key, make_usage; key = make_key().row\n"
        "for _ in range(500): make_usage(key)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=60)
    command = f"{sys.executable} manage.py export_usage | head -n 1; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.startswith('"id",')
    assert answer.stdout.splitlines()[-1] == "0"
    assert answer.stderr == ""


def test_a_rule_of_owners_does_not_stand_for_the_operators():
    tenant = make_tenant("acme")
    IPRule.objects.create(cidr="10.0.0.0/8", action="deny", tenant=tenant, by_owners=True)
    for changed in (True, False):
        assert run_json("add_ip_rule 10.0.0.0/8 deny --tenant acme")["changed"] is changed
    assert sorted(IPRule.objects.values_list("by_owners", flat=True)) == [False, True]


def test_who_only_looks_on_from_now_has_no_key_that_works():
    make_tenant("acme")
    run("create_user dora --tenant acme --role member")
    key = make_key(Tenant.objects.get(), user=User.objects.get()).row
    assert run("create_user dora --tenant acme --role viewer").endswith("Keys switched off: 1.")
    key.refresh_from_db()
    assert (key.enabled, key.switched_off_by) == (False, "administrator")
