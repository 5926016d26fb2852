"""The walk at a running gateway: its database is another process's."""

import subprocess
import sys

from django.contrib import admin

from tenants.models import ApiKey, Invitation, Membership, Tenant, User
from tests.live.gateway import ROOT, Gateway
from tests.walk.pages import Page, pages

# Leads elsewhere, to what has no page of its own.
NOT_OPENED = ("admin/r/", "account/oidc/")


def run_inside(gateway: Gateway, code: str) -> str:
    """The last line that a program says with the settings of a gateway."""
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=gateway.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def fill(gateway: Gateway, text: str) -> "GatewayRows":
    """A row in every table, with a text in every column; what Page.paths() wants to know of them."""
    token = run_inside(gateway, f"from tests.walk.rows import Rows; print(Rows({text!r}).make_all().token)")
    tables = {*admin.site._registry, ApiKey, Invitation, Membership, Tenant, User}
    return GatewayRows(token, {table: list(gateway.rows(table).order_by("-pk")[:2]) for table in tables})


class GatewayRows:
    def __init__(self, token: str, made: dict) -> None:
        self.token, self.made = token, made

    def __getitem__(self, model: type) -> list:
        return self.made[model]


def opened() -> list[Page]:
    """The pages that a browser may open: one of those that are the same page about another table."""
    found = {}
    for page in pages():
        if page.template.startswith(NOT_OPENED):
            continue
        shape = page.template
        if page.name.endswith(("_history", "_delete")) and page.model:
            page_admin = admin.site._registry[page.model]
            kind = page.name.rpartition("_")[2]
            own = "object_history_template" if kind == "history" else "delete_confirmation_template"
            shape = f"{kind} {getattr(page_admin, own)}"
        found.setdefault(shape, page)
    return list(found.values())
