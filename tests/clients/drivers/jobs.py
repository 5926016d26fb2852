"""What the drivers in Python share.

A driver reads jobs from standard input, `{"scenario", "url", "key"}` a line, and answers each with one line of JSON:
what its client library returned. `{"failure"}` is an exception that the scenario does not expect.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

QUESTIONS = json.loads((Path(__file__).parent.parent / "questions.json").read_text())
MODELS = QUESTIONS["models"]
QUESTION = QUESTIONS["question"]
IMAGE = QUESTIONS["image"]
IMAGE_URL = f"data:image/png;base64,{IMAGE}"
SCHEMA = QUESTIONS["schema"]
TOOL = {"type": "function", "function": QUESTIONS["tool"]}
# Chunks of an endless answer before the client leaves.
ENOUGH = 3


def answer_jobs(scenarios: dict[str, Callable[[str, str], Answer]]) -> None:
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = scenarios[job["scenario"]](job["url"], job["key"])
        except Exception:
            answer = {"failure": traceback.format_exc()[-3000:]}
        print(json.dumps(answer), file=answers, flush=True)


def raised(call: Callable[[], object]) -> Answer:
    """The exception that a call ends with, as a program sees it."""
    try:
        call()
    except Exception as exc:
        return {"class": type(exc).__name__, "status": getattr(exc, "status_code", None), "message": str(exc)}
    return {"class": None}
