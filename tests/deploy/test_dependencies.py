"""Row L10: few packages, pinned with hashes, looked up where a feed answers; and code that keeps to its own rules.

scripts/audit runs the rules of scripts/semgrep and their examples; here is what it could not notice itself.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKED = sorted(
    [*ROOT.glob("requirements*.txt"), ROOT / "tests/clients/requirements.txt", ROOT / "tests/clients/litellm.txt"]
)
RULES = sorted((ROOT / "scripts/semgrep").glob("*.yaml"))


def packages(path):
    """(requirement, its hashes), as the file names them."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        requirement, *hashes = line.split(" --hash=")
        yield requirement.strip(), [each.strip() for each in hashes]


def versions(path):
    return {name.partition(" ")[0] for name, _ in packages(path)}


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_l10_every_locked_package_has_one_version_and_the_hashes_of_its_files(path):
    found = list(packages(path))
    assert found
    for requirement, hashes in found:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!]+( ; |$)", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


def test_l10_production_gets_the_versions_that_were_tested():
    assert versions(ROOT / "requirements.txt") <= versions(ROOT / "requirements-dev.txt")


def test_l10_every_package_of_npm_is_locked_with_its_hash():
    locked = json.loads((ROOT / "tests/clients/package-lock.json").read_text())["packages"]
    assert len(locked) > 1
    assert [name for name, package in locked.items() if name and not package.get("integrity")] == []


def test_l10_nothing_locked_is_installed_without_its_hashes():
    files = ("Makefile", "scripts/clients", "deploy/Dockerfile")
    lines = [line for name in files for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines()]
    installing = [line for line in lines if re.search(r"pip\"? install.* -r ", line)]
    assert len(installing) == 5
    assert [line for line in installing if "--require-hashes" not in line] == []


def test_l10_what_people_and_ci_run_lints_and_audits():
    planned = subprocess.run(["make", "-n", "-B", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-r requirements-audit.txt -r requirements-semgrep.txt" in planned
    assert "\nscripts/test\n" in planned
    assert re.findall(r"(?m)^scripts/\w+$", (ROOT / "scripts/test").read_text()) == ["scripts/lint", "scripts/audit"]
    assert "set -e" in (ROOT / "scripts/test").read_text()
    assert "make --no-print-directory test" in (ROOT / ".ci/run").read_text()


# Rules of our own


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_l10_every_rule_has_examples_of_what_it_finds_and_of_what_it_leaves(path):
    """semgrep passes a rule that has none."""
    examples = "".join(each.read_text() for each in path.parent.glob(f"{path.stem}.*") if each != path)
    rules = yaml.safe_load(path.read_text())["rules"]
    assert rules
    for rule in rules:
        assert rule["severity"] == "ERROR"
        for mark in ("ruleid", "ok"):
            assert re.search(rf" {mark}: {rule['id']}\b", examples), (mark, rule["id"])


def test_l10_every_path_that_a_rule_looks_at_or_leaves_out_exists():
    named = [
        (rule["id"], pattern)
        for path in RULES
        for rule in yaml.safe_load(path.read_text())["rules"]
        for pattern in [*rule["paths"]["include"], *rule["paths"].get("exclude", [])]
    ]
    assert len(named) > 50
    assert [each for each in named if not any(ROOT.glob(each[1].strip("/")))] == []


WEAK = """
import asyncio, hashlib, pickle, random, subprocess, time
import httpx
from django.utils.safestring import mark_safe

PASSWORD = "correct horse"


async def work(text, cursor):
    asyncio.create_task(work(text, cursor))
    time.sleep(1)
    pickle.loads(text)
    exec(text)
    eval(text)
    mark_safe(text)
    hashlib.md5(text)
    random.random()
    httpx.get(text, verify=False)
    subprocess.run(text, shell=True)
    cursor.execute(f"SELECT a FROM b WHERE c = {text}")
"""


@pytest.mark.parametrize("name", ["proxy/x.py", "tenants/x.py", "usage/views/x.py", "gateway_site/server/x.py"])
def test_l10_the_linter_looks_for_what_bandit_looks_for(name):
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--stdin-filename", ROOT / name, "-"]
    done = subprocess.run(command, cwd=ROOT, input=WEAK, capture_output=True, text=True, check=False)
    found = {problem["code"] for problem in json.loads(done.stdout)}
    assert done.returncode == 1
    expected = {"S102", "S105", "S301", "S307", "S308", "S311", "S324", "S501", "S602", "S608"}
    assert expected | {"RUF006", "ASYNC251"} <= found


# Known vulnerabilities

CLEAN = {"name": "django", "version": "5.2.19", "vulns": []}
HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["5.2.20"]}
OLD = {"name": "django", "version": "3.2.0", "vulns": [HOLE]}
UNKNOWN = {"name": "django", "skip_reason": "Dependency not found"}

# pip-audit with a feed of ours: {file: what is told of it}.
STAND_IN = """
import json, sys
if __name__ == "__main__":
    files = [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "--requirement"]
    told = {told}[len(files) > 1]
    if told is None:
        sys.exit(1)
    if told == "usage":
        sys.exit(2)
    print(json.dumps(dict(dependencies=told, fixes=[])))
    sys.exit(any(package.get("vulns") for package in told))
"""


def looked_up(directory, of_old, of_ours, **environment):
    (directory / "pip_audit.py").write_text(STAND_IN.replace("{told}", repr((of_old, of_ours))))
    environment = {**os.environ, "FEED": "", "PYTHONPATH": str(directory), **environment}
    command = [sys.executable, "scripts/vulnerabilities.py"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("of_old", "of_ours", "code", "told"),
    [
        pytest.param([OLD], [CLEAN], 0, "1 packages looked up in the feed pypi, 0 problems", id="clean"),
        pytest.param([OLD], [{**CLEAN, "vulns": [HOLE]}], 1, "django 5.2.19: PYSEC-1. Take 5.2.20.", id="vulnerable"),
        pytest.param([OLD], [UNKNOWN], 1, "django: Dependency not found", id="not known to a feed that answers"),
        pytest.param([OLD], None, 0, "NOT CHECKED, the feed pypi broke off", id="breaks off"),
        pytest.param([UNKNOWN], [CLEAN], 0, "NOT CHECKED, no feed", id="an index that is no feed"),
        pytest.param([{**OLD, "vulns": []}], [CLEAN], 0, "NOT CHECKED, no feed", id="a feed that knows nothing"),
        pytest.param(None, None, 0, "NOT CHECKED, no feed", id="silent"),
    ],
)
def test_l10_vulnerable_packages_fail_and_a_silent_feed_is_no_clean_bill(tmp_path, of_old, of_ours, code, told):
    done = looked_up(tmp_path, of_old, of_ours)
    assert (done.returncode, done.stderr) == (code, "")
    assert told in done.stdout


def test_l10_who_requires_a_feed_gets_a_failure_where_none_answers(tmp_path):
    done = looked_up(tmp_path, None, None, FEED="required")
    assert done.returncode == 1
    assert "NOT CHECKED" in done.stdout


def test_l10_a_broken_tool_is_no_silent_feed(tmp_path):
    assert looked_up(tmp_path, "usage", "usage").returncode == 1
