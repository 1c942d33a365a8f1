from toys import devices  # isort: skip  # before torch

import textwrap
from pathlib import Path

import peft  # noqa: F401  # it loads the patches' modules; a test that is the first to import one would be in its way
import pytest

import qlora_bf16_patch
from toys import cpu  # noqa: F401

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    # Files here start processes and take longest: first, so that no core waits for the last of them.
    items.sort(key=lambda item: item.path.parent != HERE)
    for item in items:
        mark = item.get_closest_marker("cpu")
        if devices.MISSING:
            item.add_marker(pytest.mark.skip(reason=devices.MISSING))
        elif mark and devices.TYPE != "cpu":
            item.add_marker(pytest.mark.skip(reason=f"of the CPU alone: {mark.args[0]}"))
        # In the report that tests/repository/test_failures.py reads.
        item.user_properties += [("failure", mark.kwargs["row"]) for mark in item.iter_markers("failure")]


@pytest.fixture(autouse=True)
def _on_the_device():
    with devices.default():
        yield


@pytest.fixture
def strict():
    """As QLORA_BF16_PATCH_STRICT=1."""
    with qlora_bf16_patch.strict():
        yield


@pytest.fixture
def script(tmp_path):
    """Writes a program's text to a file, and gives its path."""

    def written(text, name="program.py"):
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return written
