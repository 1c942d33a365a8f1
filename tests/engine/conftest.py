import sys
import types

import pytest


@pytest.fixture
def library(monkeypatch):
    """One that is not torch."""

    class Layer:
        def forward(self):
            return "original"

    module = types.ModuleType("fake_library")
    module.Layer = Layer
    monkeypatch.setitem(sys.modules, "fake_library", module)
    return module
