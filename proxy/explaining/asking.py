"""An explanation for a thread that may wait: a page's."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.configuration import Configuration
from proxy.explaining.explain import explain
from proxy.explaining.question import Explanation, Question
from proxy.explaining.world import World, world_in, world_of_tables

if TYPE_CHECKING:
    from proxy.runtime import Runtime

# How long a page waits for the loop of the calls, and the loop for backends that are asked what they have.
PATIENCE = 5.0


def told_here(
    runtime: "Runtime", configuration: Configuration, question: Question, now: Callable[[], float]
) -> Explanation:
    """By the process that serves the page, which serves calls as well; else as far as the tables tell."""
    told = runtime.in_loop(lambda: _told_in(runtime, question), PATIENCE)
    if told is not None:
        return told
    return asyncio.run(explain(question, world_of_tables(configuration, now)))


async def _told_in(runtime: "Runtime", question: Question) -> Explanation | None:
    world: World | None = world_in(runtime)
    return None if world is None else await explain(question, world)
