from typing import Any

from proxy.backend_state import BackendView
from proxy.models import Backend
from tenants.management.administration import AdministrationCommand, Result, one_line


class Command(AdministrationCommand):
    help = "Lists the Ollama servers: address, slots, and what the running workers last saw of them."
    several_lines = True

    def administer(self, **options: Any) -> Result:
        views = [BackendView.of(row) for row in Backend.objects.current().select_related("report").order_by("name")]
        found = [
            {
                "name": view.backend.name,
                "url": view.backend.url,
                "slots": view.backend.slots,
                "enabled": view.backend.enabled,
                "state": view.state,
                "version": view.report.version if view.report else "",
                "problem": view.hint,
            }
            for view in views
        ]
        lines = [
            one_line(f"{each['name']} {each['url']} {each['slots']} slots {each['state']} {each['problem']}")
            for each in found
        ]
        text = "\n".join(lines) or "There are no backends. Add one with: add_backend NAME URL"
        return Result(text, {"backends": found}, changed=False)
