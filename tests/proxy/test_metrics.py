"""What calls add up to, and what of it is shown: bounded, and the same whoever is asked (threats L8, L9)."""

import fcntl
import os
import random
import threading
import time

import orjson
import pytest

from proxy.call import Call
from proxy.client_address import client_address
from proxy.configuration import Configuration
from proxy.ledger.rows import AT, COLUMNS
from proxy.metering import MAX_TOKENS
from proxy.metrics import Metrics, families, host, written
from proxy.metrics.labels import MOST, OTHER, Labels
from proxy.metrics.layout import DURATION, RATE, SECONDS, SIZE
from proxy.metrics.shared import ABANDONED_SECONDS, SharedNumbers
from proxy.metrics.tally import Sum, Tally
from proxy.model_names import parse
from proxy.routes import ROUTES
from proxy.snapshot import NO_POLICY, Model
from tests.scraped import Scrape

CHAT = ROUTES[b"/api/chat"]["POST"]


def ended_call(model="llama3.2", address="192.0.2.1", tenant="acme", stream=True, attempts=1, **numbers):
    """(call, row) as Dispatch leaves them."""
    call = Call("0" * 32, "POST", b"/api/chat", client_address(address, [], ()), 1000.0)
    call.route, call.stream, call.attempts = CHAT, stream, attempts
    call.status, call.outcome, call.error = 200, "ok", ""
    name = parse(model)
    call.model = Model(name, name, True, NO_POLICY)
    row = [0] * len(COLUMNS)
    values = {
        "tenant_name": tenant, "client_address": address, "prompt_tokens": 10, "completion_tokens": 20,
        "cost_nano": 1500, "total_us": 2_000_000, "first_token_us": 400_000, "decode_us": 1_000_000, "load_us": 5000,
        "gateway_us": 80, "bytes_in": 300, "bytes_out": 5000, "queue_us": 0, **numbers,
    }  # fmt: skip
    for column, value in values.items():
        row[AT[column]] = value
    return call, row


def admit(tally: Tally, call, row) -> None:
    tally.admitted(call, row, call.status, call.outcome, call.error)


def shown(tally: Tally, namespace: str = "gateway") -> Scrape:
    total = Sum()
    total.add(tally.told())
    return Scrape(families.text(total, [], namespace, "EUR"))


def test_each_number_of_a_call_is_where_it_belongs():
    tally = Tally(Labels())
    for _ in range(3):
        admit(tally, *ended_call())
    page = shown(tally)
    for name, labels, wanted in [
        ("gateway_requests_total", {"method": "POST", "endpoint": "/api/chat", "status": "200"}, 3),
        ("gateway_requests_duration_seconds_sum", {}, 6),
        ("gateway_requests_duration_seconds_bucket", {"le": "1"}, 0),
        ("gateway_requests_duration_seconds_bucket", {"le": "2.5"}, 3),
        ("gateway_requests_success_total", {}, 3),
        ("gateway_requests_failure_total", {}, 0),
        ("gateway_requests_by_ip_total", {"ip": "192.0.2.1", "status": "200"}, 3),
        ("gateway_calls_total", {"outcome": "ok", "model": "llama3.2:latest"}, 3),
        ("gateway_tokens_total", {"kind": "prompt"}, 30),
        ("gateway_tokens_total", {"kind": "completion"}, 60),
        ("gateway_cost_total", {"currency": "EUR"}, 4500e-9),
        ("gateway_tenant_cost_total", {"tenant": "acme", "currency": "EUR"}, 4500e-9),
        ("gateway_tokens_per_second_sum", {}, 60),
        ("gateway_tokens_per_second_bucket", {"le": "10"}, 0),
        ("gateway_tokens_per_second_bucket", {"le": "20"}, 3),
        ("gateway_time_to_first_token_seconds_sum", {}, 1.2),
        ("gateway_model_load_seconds_bucket", {"le": "0.005"}, 3),
        ("gateway_line_wait_seconds_count", {}, 3),
        ("gateway_line_wait_seconds_sum", {}, 0),
        ("gateway_overhead_seconds_bucket", {"le": "0.0001"}, 3),
        ("gateway_request_size_bytes_sum", {}, 900),
        ("gateway_response_size_bytes_bucket", {"le": "16384"}, 3),
        ("gen_ai_server_time_per_output_token_seconds_sum", {}, 0.15),
        ("gen_ai_client_token_usage_bucket", {"gen_ai_token_type": "output", "le": "64"}, 3),
        ("ollama_proxy_request_bytes_in_total", {}, 900),
        ("ollama_proxy_response_bytes_out_total", {}, 15000),
        ("ollama_proxy_token_cost_total", {"currency": "EUR"}, 4500e-9),
        ("ollama_proxy_errors_total", {}, 0),
    ]:
        assert page.total(name, **labels) == pytest.approx(wanted), (name, labels)


def test_buckets_are_up_to_and_with_their_bound_and_reach_300_seconds():
    assert SECONDS[-1] == 300
    assert RATE.shown[0] == 1
    for value, place in [(0, 0), (5000, 0), (5001, 1), (300_000_000, 15), (300_000_001, 16)]:
        assert DURATION.bucket(value) == DURATION.first + place
    assert DURATION.end - DURATION.first == len(SECONDS) + 1
    assert SIZE < 200


def test_a_stream_that_does_not_say_how_long_it_took_is_measured_from_its_first_bytes():
    tally = Tally(Labels())
    admit(tally, *ended_call(decode_us=0, total_us=2_400_000, first_token_us=400_000))
    assert shown(tally).total("gateway_tokens_per_second_sum") == 10


def test_what_a_backend_reports_cannot_make_sums_too_large_to_be_told():
    tally = Tally(Labels())
    for _ in range(10):
        admit(tally, *ended_call(completion_tokens=MAX_TOKENS, decode_us=1))
    many = Sum()
    for _ in range(1000):
        many.add(tally.told())
    assert orjson.loads(orjson.dumps(many.told())) == many.told()


@pytest.mark.parametrize("outcome", ["cached", "coalesced"])
def test_how_fast_a_kept_answer_comes_says_nothing_of_the_model(outcome):
    tally = Tally(Labels())
    call, row = ended_call(attempts=0, total_us=900, first_token_us=500, decode_us=0)
    call.outcome = outcome
    admit(tally, call, row)
    page = shown(tally)
    assert page.total("gateway_calls_total", outcome=outcome, model="llama3.2:latest") == 1
    assert page.total("gateway_tokens_per_second_count") == 0
    assert page.total("gen_ai_server_time_per_output_token_seconds_count") == 0


def test_l8_a_hundred_thousand_junk_models_paths_methods_addresses_and_tenants_add_no_series():
    """Three requests a round, and more than 100,000 values. Names that no backend has take no label at all; of others
    the first hundred do."""
    tally, chance = Tally(Labels()), random.Random(8)
    admit(tally, *ended_call())

    def junk(count: int) -> None:
        for _ in range(count):
            word = f"{chance.getrandbits(64):x}"
            call, row = ended_call(f"junk-{word}", address=f"2001:db8::{word[:4]}", tenant=word, attempts=0)
            call.status, call.outcome, call.error = 404, "failed", "model_not_found"
            admit(tally, call, row)
            refused = Call("0" * 32, word.upper(), f"/{word}".encode(), call.address, 1000.0)
            tally.answered(refused, 404, 100, families.REFUSED, "unknown_route")
            known = ended_call(f"real-{word}")
            admit(tally, *known)

    junk(2000)
    before = shown(tally)
    junk(32_000)
    after = shown(tally)
    assert after.series == before.series
    assert after.total("gateway_requests_total") == 102_001
    assert not [name for name in after.values("gateway_calls_total", "model") if name.startswith("junk")]
    for name, label in [("gateway_calls_total", "model"), ("gateway_requests_by_ip_total", "ip"),
                        ("gateway_tenant_calls_total", "tenant")]:  # fmt: skip
        assert len(after.values(name, label)) <= MOST + 1, name
        assert OTHER in after.values(name, label)
    assert after.values("gateway_requests_total", "method") == {"POST", OTHER}
    assert after.values("gateway_requests_total", "endpoint") == {"/api/chat", OTHER}
    print(f"{len(after.series)} series")


def test_l8_labels_cannot_break_out_of_their_line():
    tally = Tally(Labels())
    admit(tally, *ended_call(tenant='x"} 1\ngateway_requests_total{a="\\'))
    page = shown(tally)
    assert page.total("gateway_requests_total") == 1
    assert page.total("gateway_tenant_calls_total") == 1


def test_under_a_namespace_of_another_proxy_its_names_stay_what_they_were():
    tally = Tally(Labels())
    admit(tally, *ended_call())
    page = shown(tally, "ollama")
    assert page.total("ollama_requests_total", model="llama3.2") == 1
    assert page.text.count("# TYPE ollama_requests_total ") == 1
    assert page.text.count("# TYPE ollama_cache_hits_total ") == 1


# Several processes


def test_l9_processes_agree_on_who_has_a_label(tmp_path):
    """However they take turns: the file decides."""
    parts = [Labels() for _ in range(3)]
    for part in parts:
        part.share(tmp_path / "labels")
    chance = random.Random(9)
    given: dict[str, set[str]] = {}
    for number in range(400):
        value = f"value {number}"
        for part in chance.sample(parts, 2):
            given.setdefault(value, set()).add(part.of("model", value))
    newcomer = Labels()
    newcomer.share(tmp_path / "labels")
    for value, labels in given.items():
        assert labels == {newcomer.of("model", value)}
    assert sum(labels == {value} for value, labels in given.items()) == MOST


def test_l9_threads_that_claim_at_the_same_time_end_with_the_same_labels(tmp_path):
    parts = [Labels() for _ in range(4)]
    for part in parts:
        part.share(tmp_path / "labels")

    def claim(part: Labels, seed: int) -> None:
        for number in random.Random(seed).sample(range(300), 300):
            part.of("ip", str(number))

    threads = [threading.Thread(target=claim, args=(part, seed)) for seed, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [{str(number) for number in range(300) if part.of("ip", str(number)) != OTHER} for part in parts]
    assert all(each == kept[0] for each in kept)
    assert len(kept[0]) == MOST


def numbers(directory, host="one"):
    made = SharedNumbers(directory, host)
    made.open()
    return made


def tell(shared: SharedNumbers, count: int) -> None:
    told = {"cells": [], "addresses": [], "tenants": [], "counters": [["calls", "", count]]}
    pages = [["memory", "", "gauge", [["memory", {}, 5.0]]], ["queries", "", "counter", [["queries_total", {}, count]]]]
    shared.write(lambda: {**told, "gauges": [["in_flight", "", 1]], "pages": pages})


def counted(shared: SharedNumbers) -> int:
    living, gone = shared.read()
    total = Sum()
    for told in (*living, *gone):
        total.add(told)
    return total.counters["calls", ""]


def test_l9_what_a_process_told_stays_when_it_is_gone_and_is_added_once(tmp_path):
    one, other = numbers(tmp_path), numbers(tmp_path)
    tell(one, 3)
    tell(other, 4)
    assert counted(other) == 7
    one.close()
    assert [len(told) for told in other.read()] == [1, 1]
    for _ in range(3):
        other.fold()
        assert counted(other) == 7
    assert len(list(other.directory.glob("*.alive"))) == 1
    _, (past,) = other.read()
    assert past["pages"] == [["queries", "", "counter", [["queries_total", {}, 3.0]]]]
    third = numbers(tmp_path)
    tell(third, 5)
    other.close()
    third.fold()
    assert counted(third) == 12


def test_l9_a_process_that_dies_while_it_adds_up_leaves_nothing_twice(tmp_path):
    one, other = numbers(tmp_path), numbers(tmp_path)
    tell(one, 3)
    tell(other, 4)
    told = (one.directory / f"{one.name}.json").read_bytes()
    one.close()
    other.fold()
    (one.directory / f"{one.name}.json").write_bytes(told)  # as if it had not come to removing it
    assert counted(other) == 7
    other.fold()
    assert counted(other) == 7


def test_l9_when_the_last_is_gone_the_next_begins_anew(tmp_path):
    one = numbers(tmp_path)
    tell(one, 3)
    one.labels.write_text("model\tx\n")
    one.close()
    other = numbers(tmp_path)
    tell(other, 1)
    assert counted(other) == 1
    assert not other.labels.exists()


def test_l9_hosts_that_share_a_disk_are_not_added_up(tmp_path):
    one, other = numbers(tmp_path, "host-1"), numbers(tmp_path, "host/../2")
    tell(one, 3)
    tell(other, 4)
    assert (counted(one), counted(other)) == (3, 4)
    assert other.directory.parent == tmp_path


@pytest.mark.parametrize("damage", [b"", b"{", b'{"form": 0}', b"[]"])
def test_l9_a_file_that_cannot_be_read_is_left_out(tmp_path, damage):
    one, other = numbers(tmp_path), numbers(tmp_path)
    tell(one, 3)
    (one.directory / f"{other.name}.json").write_bytes(damage)
    assert counted(one) == 3


def test_l9_what_hosts_that_are_gone_have_left_is_removed_also_by_several_at_once(tmp_path):
    for name in ("gone", "running"):
        (tmp_path / name).mkdir()
    long_ago = time.time() - 2 * ABANDONED_SECONDS
    os.utime(tmp_path / "gone", (long_ago, long_ago))
    (tmp_path / "removed").symlink_to(tmp_path / "by another process")
    one = SharedNumbers(tmp_path, "one")
    one.open()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "removed", "running"]
    one.close()


def test_a_directory_that_cannot_be_written_leaves_the_numbers_of_one_process(tmp_path):
    (tmp_path / "taken").write_text("a file")
    metrics = Metrics(Configuration(spool_dir=tmp_path, key_pepper=b"x", metrics_dir=tmp_path / "taken"))
    metrics._join()
    metrics.ended(*ended_call())
    metrics.count()
    assert Scrape(metrics.page().decode()).total("gateway_calls_total") == 1


def joined(directory) -> Metrics:
    made = Metrics(Configuration(spool_dir=directory, key_pepper=b"x", metrics_dir=directory / "metrics"))
    made._join()
    return made


def test_l5_a_call_that_cannot_be_counted_costs_no_other_call(tmp_path, caplog):
    metrics = Metrics(Configuration(spool_dir=tmp_path, key_pepper=b"x"))
    metrics.ended(*ended_call(tenant=object()))
    metrics.ended(*ended_call())
    metrics.count()
    assert Scrape(metrics.page().decode()).total("gateway_calls_total") >= 1
    assert "could not be counted" in caplog.text


def test_a_process_that_does_nothing_leaves_the_disk_alone(tmp_path):
    metrics = joined(tmp_path)
    file = metrics._shared.directory / f"{metrics._shared.name}.json"
    metrics._tell()
    before = file.stat().st_mtime_ns
    for _ in range(5):
        metrics._tell()
    assert file.stat().st_mtime_ns == before
    metrics.ended(*ended_call())
    metrics.count()
    metrics._tell()
    assert file.stat().st_mtime_ns > before


def test_a_process_that_was_stopped_with_the_lock_holds_up_no_page(tmp_path):
    one, other = joined(tmp_path), joined(tmp_path)
    one.ended(*ended_call())
    one.count()
    with one._shared._locked(fcntl.LOCK_EX):
        other.ended(*ended_call())
        other.count()
        began = time.monotonic()
        assert Scrape(other.page().decode()).total("gateway_calls_total") == 1
        other._tell()
        print(f"{time.monotonic() - began:.1f} s")
    one._tell()
    assert Scrape(other.page().decode()).total("gateway_calls_total") == 2


def test_when_the_disk_takes_no_more_a_page_still_knows_all(tmp_path, monkeypatch):
    one, other = joined(tmp_path), joined(tmp_path)
    one.ended(*ended_call())
    one.count()
    other.ended(*ended_call())
    other.count()
    one._tell()
    other._tell()
    other.ended(*ended_call())
    other.count()

    def full(self, tell):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SharedNumbers, "write", full)
    assert Scrape(other.page().decode()).total("gateway_calls_total") == 3
    other._tell()  # says so, and goes on


def test_a_call_costs_a_few_microseconds():
    """Printed; judged in benchmarks. A fifth of a millisecond would be a fault of another kind."""
    tally = Tally(Labels())
    call, row = ended_call()
    best = min(timed(tally, call, row) for _ in range(5))
    print(f"{best:.1f} µs")
    assert best < 200


def timed(tally, call, row, calls=2000):
    began = time.process_time()
    for _ in range(calls):
        admit(tally, call, row)
    return (time.process_time() - began) / calls * 1e6


# The machine


def test_the_machine_is_told_as_far_as_it_may_be_asked(tmp_path):
    page = Scrape(written(list(host.host_metrics("gateway", tmp_path))).decode())
    for name in (
        "gateway_host_cpu_seconds_total",
        "gateway_host_memory_available_bytes",
        "gateway_host_disk_free_bytes",
    ):
        assert page.total(name) > 0
    assert "powermetrics" not in page.text


def test_cards_are_told_where_the_library_is_there(tmp_path, monkeypatch):
    """As nvidia-ml-py answers; a card that does not tell its power has no such number, rather than 0."""
    (tmp_path / "pynvml.py").write_text("""
NVML_TEMPERATURE_GPU = 0
class NVMLError(Exception): pass
class Some:
    def __init__(self, **fields): self.__dict__.update(fields)
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUtilizationRates(card): return Some(gpu=50 + card)
def nvmlDeviceGetMemoryInfo(card): return Some(used=10 << 30, total=24 << 30)
def nvmlDeviceGetPowerUsage(card):
    if card: raise NVMLError("not supported")
    return 300_000
def nvmlDeviceGetTemperature(card, sensor): return 70
""")
    monkeypatch.syspath_prepend(tmp_path)
    page = Scrape(written(list(host.host_metrics("gateway", tmp_path))).decode())
    assert page.total("gateway_host_gpu_utilization_ratio", gpu="1") == 0.51
    assert page.values("gateway_host_gpu_power_watts", "gpu") == {"0"}
    assert page.total("gateway_host_gpu_power_watts") == 300


def test_a_macs_chip_is_told_as_powermetrics_says_it():
    found = {
        family.name: family.samples[0].value
        for family in host.apple_metrics(
            "x", {"gpu": {"idle_ratio": 0.75}, "processor": {"gpu_power": 1500, "combined_power": 9000}}
        )
    }
    assert found == {"x_gpu_utilization_ratio": 0.25, "x_gpu_power_watts": 1.5, "x_power_watts": 9.0}
    assert list(host.apple_metrics("x", {})) == []
