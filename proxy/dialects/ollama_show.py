"""What an ordinary key is told about a model (T4). Pure.

What apps need to work with it stays: what it can do, its architecture and context, its parameters. What somebody wrote
into it (system prompt, template, messages, licence), and where it lies on the backend, is for keys that manage models.
"""

from typing import Any

from proxy.dialects.base import Governed, Pin, Request

# Of the answer, and of its model_info. What a later Ollama adds is not known, and so not shown.
_SHOWN = frozenset(
    ("details", "model_info", "capabilities", "parameters", "modified_at", "requires", "renderer", "parser")
)
_HIDDEN = ("license", "modelfile", "template", "system", "messages", "projector_info", "tensors")
_HIDDEN_INFO = ("tokenizer.chat_template",)


def govern_show(request: Request, pin: Pin) -> Governed:
    """Whole vocabularies (megabytes) are for those who see everything."""
    if not pin.may_unload and request.pop("verbose", None):
        return Governed(changed=["verbose"])
    return Governed()


def trim_show(answer: dict[str, Any]) -> list[str]:
    """Takes out what an ordinary key does not see; returns the names of what it was."""
    taken = [name for name in _HIDDEN if name in answer]
    unknown = answer.keys() - _SHOWN - set(_HIDDEN)
    for name in (*taken, *unknown):
        del answer[name]
    info = answer.get("model_info")
    if isinstance(info, dict):
        for name in _HIDDEN_INFO:
            info.pop(name, None)
    # Not by name: what a backend makes up is no text for a header of ours.
    return [*taken, "other fields"] if unknown else taken
