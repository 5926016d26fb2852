"""On a busy machine nothing here may hang on how fast a backend says what it has."""

import pytest


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr("proxy.cache.calls.MODELS_PATIENCE", 30.0)
    monkeypatch.setattr("proxy.fleet.fleet.PROBE_PATIENCE", 30.0)
