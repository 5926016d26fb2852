"""docs/metrics.md is made from the table of families. write_page() writes it anew, e.g. by
python manage.py shell -c "from tests.control_plane.test_documents_of_metrics import write_page; write_page()"
"""

from pathlib import Path

from proxy.metrics.families import Described, catalogue
from proxy.metrics.layout import SECONDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
BEGIN = "<!-- made from proxy/metrics/families.py: tests/control_plane/test_documents_of_metrics.py -->"
END = "<!-- end -->"


def table() -> str:
    lines = ["| name | type | labels | |", "|---|---|---|---|"]
    lines += [row(family) for family in catalogue()]
    return "\n".join(lines) + "\n"


def row(family: Described) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    buckets = ""
    if family.buckets and family.buckets != SECONDS:
        buckets = f" (buckets {family.buckets[0]:g} … {family.buckets[-1]:g})"
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help}{buckets} |"


def test_the_page_of_metrics_names_every_family():
    _, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert begin
    assert rest.partition(END)[0] == "\n" + table(), "write_page() writes it anew"


def write_page() -> None:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
