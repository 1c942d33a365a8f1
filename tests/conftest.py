from . import devices  # isort: skip  # before torch

import pytest

from . import cpu  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("cpu")
        if devices.MISSING:
            item.add_marker(pytest.mark.skip(reason=devices.MISSING))
        elif mark and devices.TYPE != "cpu":
            item.add_marker(pytest.mark.skip(reason=f"of the CPU alone: {mark.args[0]}"))


@pytest.fixture(autouse=True)
def _on_the_device():
    with devices.default():
        yield
