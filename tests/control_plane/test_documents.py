"""The pages for people: their links lead somewhere, and the commands, options, variables and files they name exist."""

import re
import shlex
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from gateway_site import cli
from proxy.models import Backend
from tenants.models import ApiKey, Limit, User
from tests.control_plane.test_commands import run
from tests.control_plane.test_configuration_page import read_by_settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
# Named on the pages, and read by others than us.
OF_OTHERS = {
    "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "HTTPS_PROXY", "HTTP_PROXY", "KEY", "NO_PROXY", "OLLAMA_API_KEY",
    "OLLAMA_CONTEXT_LENGTH", "OLLAMA_NUM_PARALLEL", "OLLAMA_GATEWAY_KEY", "OLLAMA_GATEWAY_URL", "PYTHON",
    "ADMIN_PASSWORD", "PASSWORD",
    # Of deploy/compose.yaml.
    "SITE", "WORKERS", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD",
}  # fmt: skip
FILES = r"`((?:deploy|docs|scripts|tests|benchmarks|proxy|usage|tenants|gateway_site|templates)/[\w./-]*)`"


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(params=PAGES, ids=named)
def page(request):
    return request.param


def anchors_of(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors_of(there), target


def test_the_index_has_every_page():
    index = (DOCS / "README.md").read_text()
    for each in DOCS.glob("*.md"):
        assert each.name == "README.md" or f"]({each.name})" in index, each.name


def command_lines(text):
    """The words after `manage.py` or `ollama-gateway`, of each place where a command follows."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"(?:manage\.py|(?<![/\w-])ollama-gateway) ([a-z][a-z_]*[^`\n|;&]*)", text):
        yield line.partition("  #")[0].split()


def test_every_command_that_a_page_names_exists_with_its_options(page):
    for words in command_lines(page.read_text()):
        if words[0] == "help":
            continue
        actions = cli.ACTIONS.get(words[0])
        if actions and len(words) > 1 and words[1] in actions:
            words = [actions[words[1]], *words[2:]]
        command = words[0]
        assert command in get_commands(), f"{named(page)}: {' '.join(words)}"
        known = load_command_class(get_commands()[command], command).create_parser("", command)._option_string_actions
        for word in words[1:]:
            if word == "--":
                break
            if re.match(r"--[a-z]", word):
                option = re.match(r"--[a-z-]+", word)[0]
                assert option in known, f"{named(page)}: {command} {option}"


def test_every_variable_that_a_page_names_is_read(page):
    known = set(read_by_settings()) | OF_OTHERS
    text = page.read_text()
    found = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", text))
    found |= set(re.findall(r"^(?:export )?([A-Z][A-Z0-9]*_[A-Z0-9_]+)=", text, re.MULTILINE))
    assert {name for name in found if name not in known and name.removesuffix("_FILE") not in known} == set()


def test_every_file_that_a_page_names_exists(page):
    for path in re.findall(FILES, page.read_text()):
        assert (ROOT / path).exists() or path == "deploy/.env", path


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["README.md", "docs/five-minutes.md"])
def test_the_first_commands_work_as_they_stand(name, monkeypatch):
    """One after the other, but for those that go on running."""
    monkeypatch.setenv("ADMIN_PASSWORD", "correct horse battery staple")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    done = []
    for words in command_lines("\n".join(blocks)):
        actions = cli.ACTIONS.get(words[0])
        words = [actions[words[1]], *words[2:]] if actions else words
        if words[0] not in ("serve", "demo", "run", "migrate", "doctor"):
            run(shlex.join(words))
            done.append(words[0])
    assert {"create_admin", "create_tenant", "add_backend", "create_key"} <= set(done)
    assert User.objects.get().is_superuser
    assert ApiKey.objects.usable().get().name == "laptop"
    assert Backend.objects.get().name == "gpu1"
    assert Limit.objects.count() == ("set_limit" in done)
