"""Every query of every dashboard and rule, asked of a real Prometheus that reads a real gateway."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import yaml

from proxy.fake_ollama import FakeOllama
from proxy.metrics.families import catalogue
from tenants.models import Limit
from tests.live.gateway import ROOT
from tests.no_tls import NO_TLS
from tests.ports import free_port
from usage.models import Price

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = ROOT / "deploy"
RULES = {name: DEPLOY / "prometheus" / f"{name}.yml" for name in ("recording", "alerts", "compat")}
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
MODEL = "llama3.2"


def rules(name: str) -> list[dict]:
    return [rule for group in yaml.safe_load(RULES[name].read_text())["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, the query); of an alert what it compares, which has a value whether or not it fires."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "30s")
    for name in RULES:
        for rule in rules(name):
            compared = re.sub(r" ([<>]) (?=[0-9.e]+$)", r" \1 bool ", rule["expr"])
            yield f"{name}: {rule.get('record') or rule['alert']}", compared


async def test_promtool_finds_no_fault_in_rules_and_queries(tmp_path):
    written = tmp_path / "dashboards.yml"
    found = [{"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": found}]}))
    for what in (*RULES.values(), written):
        done = subprocess.run(["promtool", "check", "rules", what], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    config = DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_dashboards_are_of_one_kind_and_ask_only_for_what_there_is():
    known = {family.name for family in catalogue()} | set(re.findall(r"gateway:[\w:]+", RULES["recording"].read_text()))
    assert len(DASHBOARDS) == 4
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        assert dashboard["uid"] == f"ollama-gateway-{path.stem}"
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        for panel in dashboard["panels"]:
            assert panel["datasource"]["uid"] == "${datasource}"
    for where, query in queries():
        for name in re.findall(r"\b(?:gateway|ollama|gen_ai)(?:_\w+|:[\w:]+)", query):
            if not name.startswith("gateway_host_"):
                assert re.sub(r"_(?:bucket|sum|count)$", "", name) in known or name in known, (where, name)


# What makes each alert fire, and what does not; in Prometheus' notation: the first value, then so much more a minute.
ALERTS = {
    "GatewayDown": ('up{job="ollama-gateway"}', "0x30", "1x30"),
    "GatewayHasNoBackend": ('gateway_backend_up{backend="a"}', "0x30", "1x30"),
    "GatewayBackendDown": ('gateway_backend_up{backend="a"}', "0x30", "1x30"),
    "GatewayBreakerOpen": ('gateway_breaker_open{backend="a"}', "1x30", "0x30"),
    "GatewayCallsFail": ("gateway:calls_failed:share5m", "0.06x30", "0.04x30"),
    "GatewayLineIsLong": ("gateway:line_wait_seconds:p95_5m", "31x30", "29x30"),
    "GatewayOverheadIsHigh": ("gateway:overhead_seconds:p95_5m", "0.06x30", "0.001x30"),
    "GatewayLedgerLags": ("gateway_ledger_lag_seconds", "61x30", "1x30"),
    "GatewaySpoolFills": ("gateway_spool_bytes", "600x30", "400x30"),
    "GatewayRulesAreOld": ("gateway_rules_age_seconds", "31x30", "0x30"),
    "GatewayDiskIsSmall": ("gateway_host_disk_free_bytes", "900000000x30", "2000000000x30"),
    "GatewayKeysAreTried": ('gateway_refusals_total{code="invalid_key"}', "0+600x30", "0+60x30"),
    "GatewayLogIsTooSlow": ("gateway_access_log_dropped_total", "0+1x30", "7x30"),
}  # fmt: skip


async def test_every_alert_fires_when_it_should_and_only_then(tmp_path):
    assert ALERTS.keys() == {rule["alert"] for rule in rules("alerts")}
    cases = []
    for alert, (series, bad, good) in ALERTS.items():
        for values in (bad, good):
            value, _, times = values.partition("x")
            notation = f"{value}x{times}" if "+" in value else f"{value}+0x{times}"
            more = [{"series": "gateway_spool_limit_bytes", "values": "1000+0x30"}]
            fires = values is bad
            query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
            cases.append({
                "interval": "1m",
                "input_series": [{"series": series, "values": notation}, *more],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "25m", "exp_samples": [{"labels": "{}", "value": int(fires)}]}
                ],
            })  # fmt: skip
    test = tmp_path / "alerts.test.yml"
    test.write_text(yaml.safe_dump({"rule_files": [str(RULES["alerts"])], "evaluation_interval": "1m", "tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", test], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# A real Prometheus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, "nomic-embed-text"], slots=4, tokens_per_second=400) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, fake):
    made = make_shared_gateway()
    made.make_backend(fake.url, slots=2)
    made.rows(Price).create(model="*", input_nano=1000, output_nano=2000, valid_from=datetime(2020, 1, 1, tzinfo=UTC))
    _, made.key = made.make_key()
    row, made.limited = made.make_key("limited")
    made.rows(Limit).create(scope="key", key=row, metric="requests", window="day", amount=1)
    await asyncio.to_thread(made.start)
    return await made.until_it_lists(MODEL, key=made.key)


class Prometheus:
    def __init__(self, directory: Path, target: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(path) for path in RULES.values()]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip

    async def values(self, client: httpx.AsyncClient, query: str) -> list[float]:
        answer = await client.get(f"{self.url}/api/v1/query", params={"query": query})
        said = answer.json()
        assert said["status"] == "success", said
        return [float(sample["value"][1]) for sample in said["data"]["result"]]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def prometheus(gateway, tmp_path_factory):
    made = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{gateway.port}")
    yield made
    made.close()


async def some_of_everything(gateway) -> None:
    """What a day brings: streams and unary calls, a line, refusals of all kinds, pages."""
    async with gateway.client(gateway.key) as client:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 16}}
        await asyncio.gather(
            *(client.post("/api/chat", json={**chat, "stream": number % 2 == 0}) for number in range(8))
        )
        await client.post("/v1/embeddings", json={"model": "nomic-embed-text", "input": "x"})
        await client.post("/api/chat", json={"model": "none", "messages": []})
        await client.get("/accounts/login/")
        for _ in range(2):
            await client.post("/api/chat", json=chat, headers={"authorization": f"Bearer {gateway.limited}"})
        await client.get("/api/tags", headers={"authorization": "Bearer ogw_aaaaaaaa_nothing"})


async def test_every_query_returns_data_after_some_traffic(gateway, prometheus):
    missing = dict(queries())
    began = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=30) as client:
        while missing and time.monotonic() < began + 90:
            await some_of_everything(gateway)
            await asyncio.sleep(0.5)
            for where, query in list(missing.items()):
                try:
                    values = await prometheus.values(client, query)
                except httpx.TransportError:
                    break  # it is starting
                if any(value == value for value in values):
                    del missing[where]
    print(f"all of them after {time.monotonic() - began:.1f} s")
    assert not missing, sorted(missing)
