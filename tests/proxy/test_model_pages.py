"""The page of models: for whom which, where, at which price."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.test import Client
from django.utils import timezone

from proxy.models import BackendReport, ModelAlias, ModelPolicy
from tenants.models import Role
from tests.factories import make_admin, make_backend, make_key, make_price, make_user

pytestmark = pytest.mark.django_db


def installed(name, **fields):
    return {"name": name, "digest": "d" * 64, "size": 2 * 10**9, "modified_at": "", "family": "llama",
            "parameters": "3.2B", "quantization": "Q4_K_M", "context": 131_072, **fields}  # fmt: skip


def report(name, *names, warm=()):
    backend = make_backend(name)
    BackendReport.objects.create(
        backend=backend, state="up", models=[installed(each) for each in names], updated_at=timezone.now(),
        warm=[{"name": each, "context": 8192, "size": 10**9, "vram": 10**9, "expires_at": ""} for each in warm],
    )  # fmt: skip
    return backend


@pytest.fixture
def fleet(db):
    report("gpu1", "llama3.2:latest", "qwen3:8b", warm=["llama3.2:latest"])
    report("gpu2", "llama3.2:latest", "nomic-embed-text:latest")
    ModelAlias.objects.create(pattern="small", model="qwen3:8b")
    ModelPolicy.objects.create(pattern="qwen3:*", num_ctx=16_384)


def models_seen(user):
    """By the name of a model, what its row says."""
    client = Client()
    client.force_login(user)
    answer = client.get("/models/")
    assert answer.status_code == 200
    html = answer.content.decode()
    found = {}
    for row in re.findall(r"<tr>.*?</tr>", html, re.S)[1:]:
        text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", row))).strip().replace("\N{NO-BREAK SPACE}", " ")
        found[text.split(" ")[0]] = text
    return found, html


def test_an_owner_sees_size_context_place_warmth_and_price(fleet, alice, acme):
    make_key(acme)
    make_price("llama3.2:latest", input_nano=150_000_000, output_nano=600_000_000)
    make_price("qwen3:*", gpu_second_nano=200_000, kwh_nano=300_000_000, watts=350)
    make_price("nomic-*")
    found, _ = models_seen(alice)
    assert set(found) == {"llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest", "small:latest"}
    llama = found["llama3.2:latest"]
    for told in ("3.2B", "Q4_K_M", "2 GB", "8,192 of 131,072", "gpu1 warm", "gpu2 on disk",
                 "0.15 per 1 M prompt tokens", "0.6 per 1 M answer tokens"):  # fmt: skip
        assert told in llama
    assert "16,384 of 131,072" in found["qwen3:8b"]
    assert "4,096 of 131,072" in found["nomic-embed-text:latest"]  # what a call gets, loaded or not
    assert "0.0002 per GPU-second" in found["qwen3:8b"]
    assert "0.3 per kWh × 350 W" in found["qwen3:8b"]
    assert found["nomic-embed-text:latest"].endswith(" 0")
    assert "stands for qwen3:8b" in found["small:latest"]
    assert "0.3 per kWh × 350 W" in found["small:latest"]


def test_no_price_is_not_0_and_prices_may_differ_by_backend(fleet, alice, acme):
    make_key(acme)
    make_price("llama3.2:latest", backend="gpu1", gpu_second_nano=5)
    found, _ = models_seen(alice)
    assert "no price" in found["qwen3:8b"]
    assert "0.000000005 per GPU-second on gpu1 no price on gpu2" in found["llama3.2:latest"]


@pytest.mark.parametrize("model", ["llama3.2", "Llama3.2:LATEST", "registry.ollama.ai/library/llama3.2"])
def test_a_price_is_told_by_whatever_name_it_was_written_for(fleet, alice, acme, model):
    make_key(acme)
    make_price(model, gpu_second_nano=5)
    make_price("*", gpu_second_nano=7, valid_from=timezone.now() + timedelta(days=1))
    found, _ = models_seen(alice)
    assert "0.000000005 per GPU-second" in found["llama3.2:latest"]
    assert "no price" in found["qwen3:8b"]


def test_t1_members_see_what_their_keys_may_use_and_no_name_of_a_backend(fleet, bob, acme):
    make_key(acme, user=bob, models_allowed=["llama3*"])
    make_price("llama3.2:latest", backend="gpu1", input_nano=5)
    found, html = models_seen(bob)
    assert set(found) == {"llama3.2:latest"}
    assert "warm" in found["llama3.2:latest"]
    assert "gpu" not in html
    assert "on 1 backend" in html


def test_a_key_that_does_not_work_shows_nothing(fleet, bob, acme):
    make_key(acme, user=bob, enabled=False)
    found, html = models_seen(bob)
    assert found == {}
    assert "You have no key that works" in html


def test_administrators_see_all_of_the_fleet(fleet):
    found, html = models_seen(make_admin())
    assert len(found) == 4
    assert "gpu2" in html


@pytest.mark.parametrize(
    ("backends", "models_allowed", "told"),
    [(0, [], "There is no backend yet"), (1, [], "No backend answers at the moment"),
     (2, ["none*"], "No model is installed that you may use")],
)  # fmt: skip
def test_an_empty_page_says_what_to_do(alice, acme, backends, models_allowed, told):
    from proxy.models import Backend

    Backend.objects.all().delete()
    make_key(acme, models_allowed=models_allowed)
    if backends == 1:
        make_backend("gpu1")
    elif backends:
        report("gpu1", "llama3.2:latest")
    assert told in models_seen(alice)[1]


def test_whoever_only_looks_at_usage_is_told_whom_to_ask(fleet, acme):
    _, html = models_seen(make_user("vera", tenant=acme, role=Role.VIEWER))
    assert "Ask an owner of your tenant" in html
