from . import devices  # isort: skip  # before torch

import textwrap

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


@pytest.fixture
def script(tmp_path):
    """Writes a program's text to a file, and gives its path."""

    def written(text, name="program.py"):
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return written
