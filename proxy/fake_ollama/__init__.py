"""A server that answers as Ollama does, and fails as it is told to."""

from proxy.fake_ollama.calls import SeenCall
from proxy.fake_ollama.faults import Fault
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.server import FakeOllama

__all__ = ["FakeOllama", "Fault", "Model", "SeenCall"]
