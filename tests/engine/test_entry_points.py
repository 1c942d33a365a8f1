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


@pytest.mark.parametrize(
    "fields", [{"name": "fake.layer"}, {"name": "third.party", "module": ["fake_library"]}], ids=["taken", "no text"]
)
def test_a_patch_that_cannot_be_registered_is_told_in_the_log_alone(library, caplog, fields):
    registry = make_registry()
    patch = dataclasses.replace(registry.patches()[0], load=lambda: says_patched, **fields)
    with caplog.at_level(logging.WARNING, "qlora_bf16_patch"):
        registry.register_entry_point(Point(patch, patch.name))
    assert f"the entry point {patch.name} is left out: " in caplog.text
    assert registry.status()[0].state == "active"
