"""Tools by which Ollama itself would ask ollama.com, and generate up to four times (ollama-api §2.10, M2)."""

from typing import Any

from proxy.dialects.base import Pin, Request


def _leaves_the_house(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and kind.strip().lower().startswith("web_")


def _local(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [tool for tool in tools if not _leaves_the_house(tool)]
    for tool in kept:
        if tool.get("tools"):  # a namespace
            tool["tools"] = _local(tool["tools"])
    return kept


def strip(request: Request, pin: Pin, changed: list[str]) -> None:
    """Takes such tools out of a request whose key may not use the cloud. `tools` were checked to be objects."""
    tools = request.get("tools")
    if not tools or pin.may_use_cloud:
        return
    before = _count(tools)
    kept = request["tools"] = _local(tools)
    if not kept:
        del request["tools"]
    if _count(kept) != before:
        changed.append("tools.web_search")


def _count(tools: list[dict[str, Any]]) -> int:
    return sum(1 + _count(tool.get("tools") or []) for tool in tools)
