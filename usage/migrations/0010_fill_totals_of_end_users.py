"""Days that were summed before end users had totals over all tenants."""

from django.db import migrations

SUMS = (
    "requests", "failures", "estimated", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano", "decode_us",
    "total_us", "decoded_tokens",
)  # fmt: skip


def fill(apps, schema_editor):
    names, sums = ", ".join(SUMS), ", ".join(f"sum({name})" for name in SUMS)
    schema_editor.execute(
        f"INSERT INTO usage_dailytotal (day, dimension, value, {names}) "  # noqa: S608
        f"SELECT day, 'end_user', end_user, {sums} FROM usage_enduserusage GROUP BY 1, 3"
    )


class Migration(migrations.Migration):

    dependencies = [("usage", "0009_stored_texts")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
