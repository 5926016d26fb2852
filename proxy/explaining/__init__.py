"""Why a call is answered as it is. Nothing here is on the path of a call; it asks what is, step by step."""

from proxy.explaining.asking import told_here
from proxy.explaining.explain import explain
from proxy.explaining.question import Explanation, Question, Step, Verdict
from proxy.explaining.world import World, world_in, world_of_tables

__all__ = ["Explanation", "Question", "Step", "Verdict", "World", "explain", "told_here", "world_in", "world_of_tables"]
