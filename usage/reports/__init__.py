"""What people see of their usage: sums of the roll-ups, never of records."""

from usage.reports.answers import Group, Period, Report, report
from usage.reports.questions import BY, FILTERS, GROUPS, PERIODS, BadQuestion, Filters, Question
from usage.reports.ranges import PRESETS, Range, month_ends, preset, today
from usage.reports.scopes import Scope, all_scopes, scopes
from usage.reports.sums import Line, by_day, by_key, by_model, totals
from usage.reports.tables import SHOWN, Row, chart_rows, columns, exported, rows
from usage.reports.totals import MEASURES, Measure, Totals
from usage.rollups import reporting_zone

__all__ = [
    "BY", "FILTERS", "GROUPS", "MEASURES", "PERIODS", "PRESETS", "SHOWN", "BadQuestion", "Filters", "Group", "Line",
    "Measure", "Period", "Question", "Range", "Report", "Row", "Scope", "Totals", "all_scopes", "by_day", "by_key",
    "by_model", "chart_rows", "columns", "exported", "month_ends", "preset", "report", "reporting_zone", "rows",
    "scopes", "today", "totals",
]  # fmt: skip
