"""Machine, packages, known clashes, and who else patches."""

import json
import sys
import types
from pathlib import Path

import bitsandbytes as bnb
import pytest
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.defects.models import tiny_llama
from qlora_bf16_patch.defects.toys import SIZE, Part, lora
from qlora_bf16_patch.doctor import clashes
from qlora_bf16_patch.doctor.machine import machine
from qlora_bf16_patch.doctor.packages import packages
from qlora_bf16_patch.doctor.strangers import over_ours, strangers

ROOT = Path(__file__).parents[2]
FORWARD = """
def replaced(self, x):
    return x

def around(self, x):
    return original(self, x)
"""


@pytest.fixture
def stranger(monkeypatch):
    """A package of somebody's, whose functions stand in for others."""
    module = types.ModuleType("somebody")
    exec(FORWARD, module.__dict__)
    monkeypatch.setitem(sys.modules, "somebody", module)
    return module


def test_what_the_machine_is_goes_into_json(monkeypatch):
    monkeypatch.setenv("QLORA_BF16_PATCH_LOG", "info")
    found = json.loads(json.dumps(machine()))
    assert found["environment"] == {"QLORA_BF16_PATCH_LOG": "info"}
    assert found["executable"] == sys.executable
    assert found["torch"]["version"]


def test_packages_are_the_patched_libraries_what_the_shim_asks_for_and_whoever_asks_for_those():
    found = {one["name"]: one for one in packages()}
    assert {"torch", "wrapt", "packaging", "peft", "bitsandbytes", "transformers", "trl"} <= found.keys()
    assert "pytest" not in found
    assert not any(one["unmet"] for one in found.values())


def test_a_package_that_asks_for_another_release_is_told(tmp_path, monkeypatch):
    info = tmp_path / "train_all-1.0.dist-info"
    info.mkdir()
    asks = "\n".join(
        f"Requires-Dist: {ask}" for ask in ("peft>=99", "bitsandbytes>=0.43", "colour", 'trl; extra == "x"')
    )
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Train_All\nVersion: 1.0\n{asks}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = (one for one in packages() if one["name"] == "train-all")
    (unmet,) = found["unmet"]
    assert unmet.startswith("asks for peft>=99, found 0.")


@pytest.mark.parametrize("clash", clashes.CLASHES, ids=lambda clash: " ".join(clash.releases))
def test_a_clash_has_a_source_that_speaks_of_its_releases(clash):
    page = ROOT / clash.source
    if page.is_file():
        assert clash.releases[0] in page.read_text()
    else:
        assert clash.source in "".join(report for row in _catalogue() for report in row.reports)


def _catalogue():
    from qlora_bf16_patch.patches import CATALOGUE

    return CATALOGUE


@pytest.mark.parametrize(
    ("versions", "has_gpu", "count"),
    [
        ({"peft": "0.19.1", "transformers": "5.2.0"}, True, 2),
        ({"peft": "0.19.1", "transformers": "5.1.0"}, True, 1),
        ({"peft": "0.21.2", "transformers": "5.2.0"}, True, 0),
        ({"bitsandbytes": "0.45.5"}, False, 3),
        ({"bitsandbytes": "0.45.5"}, True, 2),
        ({"torch": "2.7.1+cu128"}, True, 1),
        ({"torch": "2.8.0+cu128"}, True, 0),
        ({"torch": "of my own"}, True, 0),
    ],
)
def test_clashes_go_by_all_their_releases_and_the_machine(versions, has_gpu, count):
    assert len(clashes.found(versions, has_gpu)) == count


def test_a_method_that_somebody_has_replaced_is_told(stranger, monkeypatch):
    monkeypatch.setattr(bnb.nn.LinearNF4, "reset_parameters", stranger.replaced)
    assert "somebody stands in bitsandbytes.nn.modules.LinearNF4.reset_parameters" in strangers()


def test_a_wrapper_over_ours_that_calls_it_is_told(stranger, monkeypatch):
    stranger.original = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(stranger.around, "__wrapped__", stranger.original, raising=False)
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", stranger.around)
    assert over_ours() == ["Linear4bit.forward is wrapped by somebody, which calls bitsandbytes.linear4bit"]


def test_forwards_that_somebody_has_put_on_modules_are_told():
    model = lora(4)
    model.base_model.model.__class__ = type("Hooked", (Part,), {})
    for name in ("behind", "proj"):
        add_hook_to_module(getattr(model.base_model.model, name), ModelHook())
    (told,) = (told for told in strangers() if told.startswith("accelerate "))
    assert "a module's own forward in Hooked (2 of them)" in told


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_librarys_model_with_modules_of_another_package_is_told(stranger):
    model = tiny_llama().get_base_model()
    stranger.Norm = type("Norm", (nn.LayerNorm,), {"__module__": "somebody.kernels"})
    model.model.norm = stranger.Norm(SIZE)
    assert "somebody stands in Norm in LlamaForCausalLM" in strangers()


def test_looking_at_classes_imports_nothing_and_warns_of_nothing():
    before = set(sys.modules)
    strangers()
    assert set(sys.modules) == before
    assert qlora_bf16_patch.status()
