"""What a third party's entry point names is never an error of the program that imports the package."""

import dataclasses
import logging

import pytest

from .registries import make_registry, says_patched


@dataclasses.dataclass
class Point:
    """What importlib.metadata gives for an entry point."""

    patch: object
    name: str
    value: str = "third_party:PATCH"

    def load(self):
        return self.patch


def test_a_patch_whose_name_is_taken_is_told_in_the_log_alone(library, caplog):
    registry = make_registry()
    patch = dataclasses.replace(registry.patches()[0], load=lambda: says_patched, summary="another")
    with caplog.at_level(logging.WARNING, "qlora_bf16_patch"):
        registry.register_entry_point(Point(patch, patch.name))
    assert f"the entry point {patch.name} is left out: " in caplog.text
    assert [(row.state, row.summary) for row in registry.status()] == [("active", "")]


def test_a_patch_of_another_name_is_a_failed_row_under_its_own(library):
    registry = make_registry()
    patch = dataclasses.replace(registry.patches()[0], name="another.name")
    registry.register_entry_point(Point(patch, "third.party"))
    row = registry.status()[1]
    assert (row.name, row.state) == ("third.party", "failed")
    assert "not a Patch named 'third.party'" in row.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"name": 5},
        {"module": ["fake_library"]},
        {"attribute": None},
        {"attribute": ["Layer.forward"]},
        {"load": 5},
        {"distribution": ["wrapt"]},
        {"reports": "owner/repo#1"},
        {"pull_requests": (1,)},
        {"promises": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_of_another_type_is_an_error_where_the_patch_is_made(fields):
    (name,) = fields
    with pytest.raises(TypeError, match=f"^{name} of the patch .* is to be (str|tuple)"):
        dataclasses.replace(make_registry().patches()[0], **fields)
