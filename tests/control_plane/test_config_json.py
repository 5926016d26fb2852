"""config.json of another gateway: what is read of it, what is made of it, and what reading it again does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from gateway_site import start
from proxy.config_json.importing import import_file
from proxy.config_json.reading import BadConfig, ConfigJson, RateLimit, defaults_of, read
from proxy.models import Backend
from tenants.keys import digests, make_clear_text
from tenants.models import ApiKey, IPRule, Limit, Tenant
from tests.control_plane.test_commands import refusal, run, run_json

ROOT = Path(__file__).resolve().parents[2]
KEY = "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI="
# As their README prints it.
THEIRS = {
    "ollamaAddresses": ["http://localhost:11434"],
    "gatewayAddress": "0.0.0.0:8080",
    "logging": True,
    "authHeaderName": "Authorization",
    "apiKeys": [KEY],
    "rateLimit": {"maxRequests": 25, "timeWindowSeconds": 30, "enabled": False},
    "security": {"allowIps": [], "denyIps": []},
    "metrics": {"enabled": True, "endpoint": "/metrics", "namespace": "gateway"},
}


@pytest.fixture
def written(tmp_path):
    """Writes a file and returns its path. What is given takes the place of a field of theirs; None leaves it out."""

    def write(**fields):
        said = {name: value for name, value in {**THEIRS, **fields}.items() if value is not None}
        path = tmp_path / "config.json"
        path.write_text(json.dumps(said))
        return path

    return write


# Reading


def test_their_own_example_is_read(written):
    assert read(written()) == ConfigJson(
        servers=("http://localhost:11434",),
        listen=("0.0.0.0", 8080),
        logging=True,
        auth_header="Authorization",
        keys=(KEY,),
        rate_limit=RateLimit(25, 30, False),
        allow=(),
        deny=(),
        metrics_enabled=True,
        metrics_path="/metrics",
        metrics_namespace="gateway",
    )


def test_go_takes_the_names_of_fields_in_any_case(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '\ufeff{"OLLAMAADDRESSES": ["gpu1:11434"], "RateLimit": {"MaxRequests": 1, "timewindowseconds": 2}}'
    )
    assert read(path) == ConfigJson(servers=("http://gpu1:11434",), rate_limit=RateLimit(1, 2, False))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ollamaAddresses": "http://a:1"}, "ollamaAddresses: write a list"),
        ({"ollamaAddresses": ["ftp://a"]}, "ollamaAddresses[0]: Begin with http://"),
        ({"ollamaAddresses": ["http://169.254.169.254"]}, "ollamaAddresses[0]: 169.254.169.254 cannot be a backend"),
        ({"gatewayAddress": "8080"}, "gatewayAddress: write HOST:PORT"),
        ({"gatewayAddress": ":99999"}, "gatewayAddress: write HOST:PORT"),
        ({"logging": "yes"}, "logging: write true or false."),
        ({"authHeaderName": "X Key"}, "authHeaderName: this cannot be the name of a header."),
        ({"apiKeys": ["short="]}, "apiKeys[0]: a key has 16 to 256 characters here, this one has 5."),
        ({"apiKeys": [KEY, "with a blank in its middle"]}, "apiKeys[1]: a key is of printable ASCII"),
        ({"apiKeys": [1234567890123456]}, "apiKeys[0]: write a text"),
        ({"rateLimit": {"enabled": True, "maxRequests": 5}}, "rateLimit: give both"),
        ({"rateLimit": {"maxRequests": -1, "timeWindowSeconds": 0}}, "rateLimit.maxRequests: write a whole number"),
        ({"rateLimit": {"maxRequests": 1.5, "timeWindowSeconds": 1}}, "rateLimit.maxRequests: write a whole number"),
        ({"security": {"denyIps": ["10.0.0.0/33"]}}, "security.denyIps[0]: '10.0.0.0/33' is no address"),
        ({"security": []}, "security: write an object"),
        ({"metrics": {"endpoint": "/api/tags"}}, "metrics.endpoint: write a path"),
        ({"metrics": {"namespace": "a-b"}}, "metrics.namespace: write letters"),
    ],
)
def test_what_cannot_be_is_named_with_its_field(written, fields, says):
    with pytest.raises(BadConfig) as refused:
        read(written(**fields))
    assert says in str(refused.value)
    assert KEY not in str(refused.value)


def test_everything_that_is_wrong_is_said_at_once(written):
    with pytest.raises(BadConfig) as refused:
        read(written(logging=1, gatewayAddress=2, apiKeys=["x"]))
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is not JSON"),
        (b"[1]", "The file holds no object"),
        (b'{"logging": tru}', "is not JSON"),
        (b'{"logging": NaN}', "NaN is not JSON"),
        (b'{"logging": true, "Logging": true}', "Logging stands there twice"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (1 << 20) + b"{}", "is larger than 1 MiB"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, raw, says):
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(BadConfig, match=says):
        read(path)


def test_a_directory_that_docker_made_is_explained(tmp_path):
    with pytest.raises(BadConfig, match="Docker makes"):
        read(tmp_path)
    with pytest.raises(BadConfig, match="No such file"):
        read(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("logging", "wanted"), [(True, (True, "INFO")), (False, (False, "WARNING")), (None, (False, "INFO"))]
)
def test_logging_is_the_access_log_and_the_level(logging, wanted):
    defaults = defaults_of(ConfigJson(logging=logging))
    assert (defaults.access_log, defaults.log_level) == wanted


# The settings


def settings_with(path, **env):
    """What a fresh process has for its settings."""
    script = (
        "from gateway_site import settings as s; import json; g = s.GATEWAY; print(json.dumps([s.HOST, s.PORT, "
        "g.auth_header.decode(), g.access_log, s.LOG_LEVEL, s.METRICS_ENABLED, s.METRICS_PATH, s.METRICS_NAMESPACE]))"
    )
    named = {name: value for name, value in os.environ.items() if name not in ("PORT", "DJANGO_SETTINGS_MODULE")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**named, "CONFIG_FILE": str(path), **env},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def test_a_mounted_file_takes_the_place_of_the_defaults(written):
    path = written(
        gatewayAddress=":9000", logging=False, authHeaderName="X-Key",
        metrics={"enabled": False, "endpoint": "/numbers", "namespace": "proxy"},
    )  # fmt: skip
    assert settings_with(path) == ["0.0.0.0", 9000, "x-key", False, "WARNING", False, "/numbers", "proxy"]


def test_a_variable_goes_before_the_file(written):
    said = settings_with(
        written(logging=False), PORT="7000", AUTH_HEADER="X-Mine", LOG_LEVEL="DEBUG", ACCESS_LOG="True"
    )
    assert said[:5] == ["0.0.0.0", 7000, "x-mine", True, "DEBUG"]


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, written):
    assert "is a directory, which Docker makes" in settings_with(tmp_path)
    assert "logging: write true or false." in settings_with(written(logging="yes"))


# The import


@pytest.mark.django_db
def test_each_field_is_taken_and_reported(written):
    path = written(security={"allowIps": ["192.168.0.0/16"], "denyIps": ["192.168.1.7"]}, somethingElse=1)
    said = run_json("import_config", str(path))
    assert said["changed"] is True
    assert {field: lines[0].partition(" ")[0] for field, lines in said["fields"].items()} == {
        "ollamaAddresses": "added",
        "gatewayAddress": "0.0.0.0:8080:",
        "logging": "true:",
        "authHeaderName": "Authorization:",
        "apiKeys": "imported",
        "rateLimit": "set",
        "security.allowIps": "added",
        "security.denyIps": "added",
        "metrics.enabled": "true:",
        "metrics.endpoint": "/metrics:",
        "metrics.namespace": "gateway:",
        "somethingelse": "not",
    }
    assert Backend.objects.get().url == "http://localhost:11434"
    key = ApiKey.objects.get()
    assert (key.imported, key.tenant.name, key.state) == (True, "default", "active")
    assert key.digest == digests(KEY)[0] == digests(KEY.rstrip("="))[0]
    limit = Limit.objects.get()
    assert (limit.scope, limit.metric, limit.amount, limit.window_seconds, limit.mode) == (
        "address", "requests", 25, 30, "shadow",
    )  # fmt: skip
    assert set(IPRule.objects.values_list("cidr", "action")) == {
        ("192.168.0.0/16", "allow"), ("192.168.1.7/32", "deny"),
    }  # fmt: skip


@pytest.mark.django_db
def test_the_report_and_the_tables_hold_no_key(written):
    said = run("import_config", str(written()))
    assert KEY[:10] not in said
    assert "apiKeys: imported number 1" in said
    assert "start the gateway with CONFIG_FILE=" in said


@pytest.mark.django_db
def test_again_it_changes_nothing(written):
    path = written(security={"allowIps": ["10.1.2.3/8"], "denyIps": ["::1"]}, rateLimit=THEIRS["rateLimit"])
    tables = (Backend, ApiKey, Limit, IPRule, Tenant)
    assert run_json("import_config", str(path))["changed"] is True
    before = [list(model.objects.order_by("pk").values()) for model in tables]
    assert run_json("import_config", str(path))["changed"] is False
    assert [list(model.objects.order_by("pk").values()) for model in tables] == before


@pytest.mark.django_db
def test_a_file_that_is_wrong_in_one_place_changes_nothing(written):
    assert "apiKeys[1]: a key has" in refusal("import_config", str(written(apiKeys=[KEY, "x"])))
    assert not Backend.objects.exists()
    path = written(ollamaAddresses=["http://localhost:1", "http://localhost:2"])
    with pytest.raises(BadConfig, match="http://localhost:2: not that one"):
        import_file(path, refuse_server=lambda url: url.endswith("2") and not_that_one())
    assert not Backend.objects.exists()
    assert not ApiKey.objects.exists()


def not_that_one():
    raise ValueError("not that one")


@pytest.mark.django_db
def test_what_the_file_no_longer_names_is_taken_back_and_comes_again(written):
    other = "another-key-of-theirs-0123456789"
    import_file(written(
        ollamaAddresses=["http://localhost:1", "http://localhost:2"], apiKeys=[KEY, other],
        security={"denyIps": ["192.0.2.1"]}, rateLimit={**THEIRS["rateLimit"], "enabled": True},
    ))  # fmt: skip
    import_file(written(ollamaAddresses=["http://localhost:1"], rateLimit={"maxRequests": 50, "timeWindowSeconds": 60}))
    assert [row.enabled for row in Backend.objects.order_by("pk")] == [True, False]
    assert [row.state for row in ApiKey.objects.order_by("pk")] == ["active", "disabled"]
    assert not IPRule.objects.exists()
    assert Limit.objects.values_list("amount", "window_seconds", "mode").get() == (50, 60, "shadow")
    report = import_file(written(ollamaAddresses=["http://localhost:1", "http://localhost:2"], apiKeys=[KEY, other]))
    assert report.changed
    assert all(row.enabled for row in Backend.objects.all())
    assert [row.state for row in ApiKey.objects.order_by("pk")] == ["active", "active"]


@pytest.mark.django_db
def test_what_was_decided_here_stays(written):
    path = written(security={"denyIps": ["192.0.2.1"]})
    import_file(path)
    ApiKey.objects.get().revoke()
    Backend.objects.get().archive()
    IPRule.objects.get().delete()
    Limit.objects.get().delete()
    report = import_file(path)
    assert not report.changed
    assert ApiKey.objects.get().state == "revoked"
    assert not Backend.objects.current().exists()
    assert not IPRule.objects.exists()
    assert not Limit.objects.exists()
    assert "which is revoked here" in report.by_field["apiKeys"][0]
    assert "was deleted here, and stays so" in report.by_field["ollamaAddresses"][0]


@pytest.mark.django_db
def test_rows_that_did_not_come_from_the_file_are_left_alone(written, acme):
    Backend.objects.create(name="mine", url="http://localhost:11434", slots=3)
    IPRule.objects.create(cidr="192.0.2.1/32", action="deny")
    Limit.objects.create(scope="address", metric="requests", window="seconds", window_seconds=30, amount=5)
    import_file(written(security={"denyIps": ["192.0.2.1"]}))
    import_file(written(ollamaAddresses=[], apiKeys=[]))
    assert Backend.objects.values_list("name", "slots", "enabled").get() == ("mine", 3, True)
    assert IPRule.objects.count() == 1
    assert Limit.objects.get().amount == 5
    assert ApiKey.objects.get().state == "disabled"


@pytest.mark.django_db
def test_a_key_of_our_form_keeps_its_prefix(written):
    prefix, clear_text = make_clear_text()
    import_file(written(apiKeys=[clear_text]))
    key = ApiKey.objects.get()
    assert (key.prefix, key.imported) == (prefix, False)


@pytest.mark.django_db
def test_a_pepper_that_was_rotated_does_not_import_a_key_twice(written, settings):
    import_file(written())
    settings.KEY_PEPPER_FALLBACKS = [settings.KEY_PEPPER]
    settings.KEY_PEPPER = b"a newer pepper"
    assert not import_file(written()).changed


@pytest.mark.django_db
def test_the_start_imports_the_mounted_file_and_adds_no_other_server(written, settings):
    settings.UPSTREAM = settings.OLLAMA_HOST = ""
    settings.OLLAMA_PORT = 0
    settings.CONFIG_FILE = str(written(ollamaAddresses=["http://127.0.0.1:1", "http://127.0.0.1:2"]))
    start.take_over_environment("", "127.0.0.1", 8080)
    assert set(Backend.objects.values_list("url", flat=True)) == {"http://127.0.0.1:1", "http://127.0.0.1:2"}
    # A variable that names one of them does not make it count twice.
    Backend.objects.all().delete()
    written(ollamaAddresses=["http://127.0.0.1:3"])
    start.take_over_environment("http://127.0.0.1:3", "127.0.0.1", 8080)
    assert Backend.objects.get().set_by_environment


@pytest.mark.django_db
def test_n11_the_gateway_itself_is_no_server_of_its_file(written, settings):
    settings.UPSTREAM = settings.OLLAMA_HOST = ""
    settings.OLLAMA_PORT = 0
    settings.CONFIG_FILE = str(written(ollamaAddresses=["http://127.0.0.1:8080"]))
    with pytest.raises(ImproperlyConfigured, match="this is the gateway itself"):
        start.take_over_environment("", "0.0.0.0", 8080)
