"""Import orders, each in a process of its own, with a library made for the purpose."""

import ast
import itertools
import pathlib
import sys

import pytest

from .registries import check, run

LIBRARY = """
class Layer:
    def forward(self):
        return "original"
"""
STEPS = {
    "library": "import fake_library",
    "shim": "registry = make_registry()",
    "from": "from fake_library import Layer",
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids="-".join)
def test_every_import_order_ends_patched(tmp_path, order):
    (tmp_path / "fake_library.py").write_text(LIBRARY)
    steps = "\n".join(STEPS[step] for step in order)
    code = f"from tests.engine.registries import make_registry\n{steps}\nassert Layer().forward() == 'patched'"
    check(run(tmp_path, code))


HALF = """
registry = __import__("tests.engine.registries").engine.registries.make_registry()  # the shim, imported in the middle
assert registry.status()[0].state == "failed"
import json.tool  # an import while the target is still missing
import builtins
builtins.registry = registry
"""


@pytest.mark.parametrize("later", ["import sched", "registry.status()", "registry.enable()"])
def test_a_half_initialised_module_is_tried_again(tmp_path, later):
    (tmp_path / "fake_library.py").write_text(HALF + LIBRARY)
    code = f"""
import fake_library, sys
{later}
assert fake_library.Layer().forward() == "patched"
assert registry.status()[0].state == "active"
assert not any("_Occasion" in repr(finder) for finder in sys.meta_path)
"""
    check(run(tmp_path, code))


def test_a_library_that_raises_at_import_raises_its_own_error_and_stays_pending(tmp_path):
    (tmp_path / "fake_library.py").write_text("raise OSError('libcuda is missing')")
    code = """
from tests.engine.registries import make_registry
registry = make_registry()
try:
    import fake_library
except OSError as error:
    assert str(error) == "libcuda is missing"
else:
    raise AssertionError
assert registry.status()[0].state == "pending"
"""
    check(run(tmp_path, code))


def test_uninstall_before_the_library_arrives_leaves_it_alone_and_enable_patches_it(tmp_path):
    (tmp_path / "fake_library.py").write_text(LIBRARY)
    code = """
from tests.engine.registries import make_registry
registry = make_registry()
registry.uninstall()
import fake_library
assert vars(fake_library.Layer)["forward"].__module__ == "fake_library"
registry.enable()
assert fake_library.Layer().forward() == "patched"
"""
    check(run(tmp_path, code))


def test_the_import_loads_no_library_and_prints_nothing(tmp_path):
    heavy = "torch peft bitsandbytes transformers rich"
    code = f"import sys, qlora_bf16_patch; sys.exit(any(name in sys.modules for name in {heavy.split()}))"
    result = run(tmp_path, code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_kill_switch_hooks_nothing(tmp_path):
    code = """
import sys, wrapt.importer
import qlora_bf16_patch
assert not wrapt.importer._post_import_hooks
assert {row.state for row in qlora_bf16_patch.status()} == {"off"}
"""
    check(run(tmp_path, code, QLORA_BF16_PATCH="0"))


def test_the_log_variable_shows_the_log(tmp_path):
    code = "import qlora_bf16_patch as q, logging; logging.getLogger('qlora_bf16_patch').info('cast')"
    assert "cast" in run(tmp_path, code, QLORA_BF16_PATCH_LOG="info").stderr
    assert run(tmp_path, code).stderr == ""


def test_an_unknown_name_in_the_environment_stops_the_import(tmp_path):
    result = run(tmp_path, "import qlora_bf16_patch", QLORA_BF16_PATCH_DISABLE="peft.bondary")
    assert result.returncode == 1
    assert "QLORA_BF16_PATCH_DISABLE" in result.stderr
    assert "Did you mean 'peft.boundary'" in result.stderr


PLUGIN = """
from qlora_bf16_patch import Patch

PATCH = Patch("fake.layer", "fake_library", "Layer.forward", lambda: factory, "", "wrapt")

def factory(original, installation):
    return lambda self: "patched" if installation.on else original(self)
"""


def test_an_installed_third_party_is_found_and_its_name_is_known_to_the_environment(tmp_path):
    (tmp_path / "fake_library.py").write_text(LIBRARY)
    (tmp_path / "third_party.py").write_text(PLUGIN)
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[qlora_bf16_patch.patches]\nfake.layer = third_party:PATCH\n")
    code = "import qlora_bf16_patch, fake_library; assert fake_library.Layer().forward() == '{}'"
    check(run(tmp_path, code.format("patched")))
    check(run(tmp_path, code.format("original"), QLORA_BF16_PATCH_DISABLE="fake.*"))


PACKAGE = """
import {name}.target
NAME = "complete"
import json.tool  # an import while the package's body is still running
"""
NEEDS_THE_PACKAGE = """
def factory(original, installation):
    from fake_package import NAME
    return lambda self: "patched" if installation.on else original(self)
"""


def test_a_factory_that_needs_the_rest_of_the_package_is_tried_again_without_a_warning(tmp_path):
    (tmp_path / "fake_package").mkdir()
    (tmp_path / "fake_package" / "__init__.py").write_text(PACKAGE.format(name="fake_package"))
    (tmp_path / "fake_package" / "target.py").write_text(LIBRARY)
    (tmp_path / "fake_patch.py").write_text(NEEDS_THE_PACKAGE)
    code = """
from tests.engine.registries import make_registry
registry = make_registry(module="fake_package.target", load="fake_patch:factory")
import fake_package
assert registry.status()[0].state == "active"
assert fake_package.target.Layer().forward() == "patched"
"""
    check(run(tmp_path, code))


def test_a_target_that_the_library_lacks_is_warned_of_at_its_import(tmp_path):
    (tmp_path / "fake_library.py").touch()
    code = """
from tests.engine.registries import make_registry
make_registry()
import fake_library
print("imported")
"""
    result = run(tmp_path, code)
    assert result.stdout == "imported\n"
    assert "RuntimeWarning: the patch fake.layer could not be installed on wrapt" in result.stderr
    assert "has no Layer.forward" in result.stderr


def test_a_failure_does_not_break_the_import_where_warnings_are_errors(tmp_path):
    (tmp_path / "fake_library.py").touch()
    code = """
import warnings
from tests.engine.registries import make_registry
registry = make_registry()
warnings.simplefilter("error")
import fake_library
assert registry.status()[0].state == "failed"
"""
    result = run(tmp_path, code, QLORA_BF16_PATCH_LOG="warning")
    assert result.returncode == 0, result.stderr
    assert "fake.layer could not be installed" in result.stderr


def test_under_the_kill_switch_the_import_raises_nothing_whatever_else_is_set(tmp_path):
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_bytes(b"[qlora_bf16_patch.patches]\n\xff\n")
    environ = {"DISABEL": "x", "ENABLE": ",", "DISABLE": "no.such_patch", "STRICT": "tru", "LOG": "loud"}
    environ = {f"QLORA_BF16_PATCH_{suffix}": value for suffix, value in environ.items()}
    check(run(tmp_path, "import qlora_bf16_patch", QLORA_BF16_PATCH="0", **environ))
    assert run(tmp_path, "import qlora_bf16_patch", **environ).returncode == 1


MODULES = sorted((pathlib.Path(__file__).parents[2] / "qlora_bf16_patch" / "engine").glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_engine_knows_neither_the_rest_of_the_package_nor_a_library(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    relative = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    assert {node.level for node in relative} <= {1}
    absolute = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    absolute += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in absolute} <= {*sys.stdlib_module_names, "wrapt", "packaging"}
