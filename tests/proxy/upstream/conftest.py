"""The client of calls runs on both event loops: what a kernel says of a dead connection reaches it in two ways."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories():
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
