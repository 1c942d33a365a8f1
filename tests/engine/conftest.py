"""A library that is not torch, and a registry of one patch of it."""

import sys
import types

import pytest

from qlora_bf16_patch.registry import Patch, Registry
from qlora_bf16_patch.toggles import Toggles


def says_patched(original, installation):
    return lambda self: "patched" if installation.on else original(self)


def make_registry(environ=None, **fields):
    patch = {
        "name": "fake.layer",
        "module": "fake_library",
        "attribute": "Layer.forward",
        "load": lambda: says_patched,
        "summary": "",
        "distribution": "wrapt",
    }
    registry = Registry(Toggles(environ or {}, ["fake.layer"]))
    registry.register(Patch(**{**patch, **fields}))
    return registry


@pytest.fixture
def library(monkeypatch):
    class Layer:
        def forward(self):
            return "original"

    module = types.ModuleType("fake_library")
    module.Layer = Layer
    monkeypatch.setitem(sys.modules, "fake_library", module)
    return module
