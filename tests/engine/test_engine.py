"""The engine with a fake library; no torch."""

import subprocess
import sys
import types

import pytest

from qlora_bf16_patch.registry import Patch, Registry
from qlora_bf16_patch.toggles import EnvironmentVariableError, Toggles, UnknownPatchError


@pytest.fixture
def library(monkeypatch):
    class Layer:
        def forward(self):
            return "original"

    module = types.ModuleType("fake_library")
    module.Layer = Layer
    monkeypatch.setitem(sys.modules, "fake_library", module)
    return module


def registry(environ=None, attribute="Layer.forward"):
    def factory(original, installation):
        return lambda self: "patched" if installation.on else original(self)

    known = Registry(Toggles(environ or {}, ["fake.layer"]))
    known.register(Patch("fake.layer", "fake_library", attribute, lambda: factory, "", "wrapt"))
    return known


def test_uninstall_restores_the_very_object(library):
    original = vars(library.Layer)["forward"]
    known = registry()
    assert library.Layer().forward() == "patched"
    known.uninstall()
    assert vars(library.Layer)["forward"] is original


def test_another_partys_wrapper_is_shadow_and_stays(library):
    known = registry()
    other = library.Layer.forward = lambda self: "other"
    assert known.status()[0].state == "shadowed"
    known.uninstall()
    assert vars(library.Layer)["forward"] is other


def test_a_missing_target_is_failed_and_breaks_nothing(library):
    assert registry(attribute="Gone.forward").status()[0].state == "failed"


@pytest.mark.parametrize("environ", [{"QLORA_BF16_PATCH": " OFF "}, {"QLORA_BF16_PATCH_DISABLE": "fake.*"}])
def test_the_environment_outranks_calls(library, environ):
    known = registry(environ)
    known.enable("fake.layer")
    assert library.Layer().forward() == "original"
    assert known.status()[0].state == "off"


def test_unknown_names_are_errors_that_suggest():
    with pytest.raises(EnvironmentVariableError, match=r"QLORA_BF16_PATCH_ENABLE.*fake\.layer"):
        Toggles({"QLORA_BF16_PATCH_ENABLE": "fake.lyer"}, ["fake.layer"])
    with pytest.raises(UnknownPatchError, match=r"fake\.layer"):
        registry().disable("fake.lyer")


def test_the_import_loads_no_library_and_prints_nothing():
    heavy = "torch peft bitsandbytes transformers rich"
    code = f"import sys, qlora_bf16_patch; sys.exit(any(name in sys.modules for name in {heavy.split()}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
