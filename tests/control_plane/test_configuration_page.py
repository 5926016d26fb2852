"""docs/configuration.md names every variable that the settings read, with its default, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
# Readers whose second argument is the default.
WITH_DEFAULT = {
    "text",
    "flag",
    "integer",
    "seconds",
    "items",
    "networks",
    "choice",
    "port",
    "matching",
    "url",
    "time_zone",
}
UNKNOWN = object()


def read_by_settings():
    """name → its default, if that is a constant"""
    found = {}
    for node in ast.walk(ast.parse((ROOT / "gateway_site" / "settings.py").read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "env"
            and node.func.attr != "data_home"
        ):
            name, *rest = node.args
            assert isinstance(name, ast.Constant), f"line {node.lineno}: name the variable literally"
            found.setdefault(name.value, UNKNOWN)
            if node.func.attr in WITH_DEFAULT and rest:
                try:
                    found[name.value] = eval(ast.unparse(rest[0]), {"__builtins__": {}})
                except (NameError, AttributeError):
                    pass  # depends on another
    return found


def shown_on_the_page():
    """name → (its default, whether the line is switched off)"""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    matches = [match for line in lines if (match := re.fullmatch(r"(#?)([A-Z][A-Z0-9_]+)=(.*)", line))]
    assert len(matches) == len({match[2] for match in matches}), "a variable stands there twice"
    return {match[2]: (match[3], bool(match[1])) for match in matches}


def test_the_page_names_every_variable_and_no_other():
    assert set(shown_on_the_page()) == set(read_by_settings())


def test_the_page_shows_the_defaults():
    shown = shown_on_the_page()
    for name, default in read_by_settings().items():
        value, switched_off = shown[name]
        if default is UNKNOWN or default == "":
            continue
        assert not switched_off, f"{name} has the default {default!r}"
        assert value == str(default), name
