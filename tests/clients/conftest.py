"""The databases of the live tests."""

from tests.live.conftest import sqlite_template

__all__ = ["sqlite_template"]
