"""The walk at a running gateway: its database is another process's."""

import subprocess
import sys

from django.contrib import admin

from tenants.models import ApiKey, Invitation, Membership, Tenant, User
from tests.live.gateway import ROOT, Gateway
from tests.walk.pages import Page, pages

# What a table of the admin has whose form for a new row is another than that of a row that is there.
OF_ITS_OWN = {"add_form", "add_form_template", "add_fieldsets", "get_fieldsets", "get_form", "get_readonly_fields"}
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
    # What the demo has made comes first.
    return GatewayRows(token, {table: list(gateway.rows(table).order_by("pk")[:2]) for table in tables})


class GatewayRows:
    def __init__(self, token: str, made: dict) -> None:
        self.token, self.made = token, made

    def __getitem__(self, model: type) -> list:
        return self.made[model]


def opened() -> list[Page]:
    """The pages that a browser may open: one of those that are the same page about another table."""
    found = {}
    # A form with a row in it before one without.
    for page in sorted(pages(), key=lambda page: page.name.endswith("_add")):
        if page.template.startswith(NOT_OPENED):
            continue
        found.setdefault(shape(page), page)
    return list(found.values())


def shape(page: Page) -> str:
    """What two pages of the admin have in common that differ in nothing but the table."""
    if page.model is None or not page.name:
        return page.template
    of_table = admin.site._registry[page.model]
    match page.name.rpartition("_")[2]:
        case "history":
            return f"history {of_table.object_history_template}"
        case "delete":
            return f"delete {of_table.delete_confirmation_template}"
        case "add" if not any(name in vars(base) for base in type(of_table).__mro__[:3] for name in OF_ITS_OWN):
            return f"{page.template.removesuffix('add/')}%(object_id)s/change/"
    return page.template
