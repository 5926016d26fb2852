import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What downloads and installs comes last: everything else has been told by then."""
    last = [item for item in items if item.path.name == "test_installed.py"]
    items[:] = [item for item in items if item.path.name != "test_installed.py"] + last
