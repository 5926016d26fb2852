"""Days that were summed before there were totals of all tenants. What else is new is filled by `reconcile --fix`."""

from django.db import migrations

SUMS = (
    "requests", "failures", "estimated", "unpriced", "prompt_tokens", "completion_tokens", "cost_nano", "decode_us",
    "total_us", "decoded_tokens",
)  # fmt: skip
VALUES = {
    "": "''",
    "tenant": "CAST(tenant_id AS varchar(20))",
    "user": "coalesce(CAST(user_id AS varchar(20)), '')",
    "key": "CAST(api_key_id AS varchar(20))",
    "model": "model",
    "backend": "backend",
}


def fill(apps, schema_editor):
    names, sums = ", ".join(SUMS), ", ".join(f"sum({name})" for name in SUMS)
    for dimension, value in VALUES.items():
        schema_editor.execute(
            f"INSERT INTO usage_dailytotal (day, dimension, value, {names}) "  # noqa: S608
            f"SELECT day, '{dimension}', {value}, {sums} FROM usage_dailyusage GROUP BY 1, 2, 3"
        )


class Migration(migrations.Migration):

    dependencies = [("usage", "0004_daily_totals")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
