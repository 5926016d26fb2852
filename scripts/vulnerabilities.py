"""Ask a feed of known vulnerabilities about every package that is locked; scripts/audit runs this.

A feed counts only if it knows an old Django as vulnerable: one that answers nothing, or knows nothing, would make
everything look clean. Ends with 1 where something was found, and with FEED=required also where no feed answers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pip_audit  # noqa: F401 - an environment without it is no feed that is silent

ROOT = Path(__file__).parents[1]
# All of requirements.txt is in requirements-dev.txt.
LOCKED = ("requirements-dev.txt", "requirements-audit.txt", "requirements-semgrep.txt")
FEEDS = ("pypi", "osv")
KNOWN_AS_VULNERABLE = "django==3.2.0\n"
# Identifier: why it does not concern us, and until when that is believed.
ACCEPTED: dict[str, str] = {}
# Seconds that one look at a feed may take.
PATIENCE = 120
PATIENCE_TO_BEGIN = 20


def main() -> int:
    feed = next(filter(answers, FEEDS), None)
    if feed is None:
        return unanswered("no feed of vulnerabilities answers from here")
    found = ask(feed, [str(ROOT / name) for name in LOCKED], PATIENCE)
    if found is None:
        return unanswered(f"the feed {feed} broke off")
    problems = [*vulnerable(found), *unknown(found)]
    print(f"Vulnerabilities: {len(found)} packages looked up in the feed {feed}, {len(problems)} problems.")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def answers(feed: str) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(KNOWN_AS_VULNERABLE)
        file.flush()
        return bool(vulnerable(ask(feed, [file.name], PATIENCE_TO_BEGIN) or []))


def ask(feed: str, files: list[str], patience: float) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package, or None if it could not say in `patience` seconds."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", feed, "--timeout", "10"]
    command += ["--format", "json", "--progress-spinner", "off", "--no-deps", "--disable-pip"]
    for file in files:
        command += ["--requirement", file]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None
    # 0: nothing found; 1: something, or no answer. All else is a mistake of ours.
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return None
    return found


def vulnerable(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {hole['id']}. Take {' or '.join(hole['fix_versions']) or 'it out'}."
        for package in found
        for hole in package.get("vulns", ())
        if ACCEPTED.keys().isdisjoint([hole["id"], *hole.get("aliases", ())])
    ]


def unknown(found: list[dict[str, Any]]) -> list[str]:
    """What the feed has never heard of: withdrawn, or not what it says it is."""
    return [f"{package['name']}: {package['skip_reason']}" for package in found if "skip_reason" in package]


def unanswered(why: str) -> int:
    print(f"Vulnerabilities: NOT CHECKED, {why}. Run `make audit FEED=required` on a machine that reaches one.")
    return 1 if os.environ.get("FEED") == "required" else 0


if __name__ == "__main__":
    sys.exit(main())
