"""What is seldom: odd names and releases, several libraries that are half there."""

import sys
import threading
import types
from importlib.machinery import ModuleSpec

import pytest

from qlora_bf16_patch.engine import imports, versions
from qlora_bf16_patch.engine.installation import Installation
from qlora_bf16_patch.engine.patch import Patch
from qlora_bf16_patch.engine.statuses import Statuses

from .registries import make_registry


@pytest.mark.parametrize("name", ["Fake.layer", "fake-layer", " fake.layer"])
def test_a_name_that_the_environment_could_not_spell_is_refused(library, name):
    registry = make_registry()
    with pytest.raises(ValueError, match=r"lower case, without '-': 'fake"):
        registry.register(Patch(name, "fake_library", "Layer.forward", lambda: None))
    assert [row.name for row in registry.status()] == ["fake.layer"]


@pytest.mark.parametrize("version", ["git-main", "0.50.2-local build"])
def test_a_release_whose_version_is_none_is_patched(library, monkeypatch, version):
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: version)
    registry = make_registry(requires=">=99", tested="1.0")
    (row,) = registry.status()
    assert (row.state, row.version) == ("active", version)
    assert not any("tested" in note for note in row.notes)
    assert library.Layer().forward() == "patched"


@pytest.fixture
def half_there(monkeypatch):
    """A function that makes a library whose body has not come to its class yet, and one that completes it."""
    complete = []

    def made(name):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__spec__._initializing = True
        monkeypatch.setitem(sys.modules, name, module)
        return module

    def completed(module):
        module.Layer = type("Layer", (), {"forward": lambda self: "original"})
        module.__spec__._initializing = False
        complete.append(module)

    return made, completed


def waits():
    return any(finder is imports._occasion for finder in sys.meta_path)


def test_of_two_libraries_that_are_half_there_each_is_patched_when_it_is_complete(half_there):
    made, completed = half_there
    one, other = made("fake_one"), made("fake_other")
    first, second = make_registry(module="fake_one"), make_registry(module="fake_other")
    assert [finder for finder in sys.meta_path if finder is imports._occasion] == [imports._occasion]
    completed(other)
    assert [second.status()[0].state, first.status()[0].state] == ["active", "failed"]
    assert (other.Layer().forward(), waits()) == ("patched", True)
    completed(one)
    assert (first.status()[0].state, one.Layer().forward(), waits()) == ("active", "patched", False)


def test_two_threads_that_find_a_library_complete_at_once_are_both_content(half_there):
    made, _ = half_there
    module = made("fake_library")
    both, ready, failures = threading.Barrier(2), [], []

    def arrived(module, complete):
        if not ready:
            return False
        both.wait(30)  # the other thread is here as well
        return True

    def look():
        try:
            imports.retry()
        except Exception as error:
            failures.append(error)

    imports.when_imported(module.__name__, arrived)
    ready.append(True)
    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (failures, imports._waiting, waits()) == ([], [], False)


def test_what_is_no_kept_method_of_the_object_itself_is_not_rebound(library):
    layer, other = library.Layer(), library.Layer()
    before = other.forward
    make_registry()
    for kept in (None, len, "forward", before):
        layer._old_forward = kept
        assert not Installation("one").rebind(layer)
        assert layer._old_forward is kept


def test_in_ipython_the_statuses_are_the_table_that_is_printed(library):
    statuses, printed = make_registry().status(), []
    statuses._repr_pretty_(types.SimpleNamespace(text=printed.append), False)
    assert isinstance(statuses, Statuses)
    assert printed == [str(statuses)]
    assert printed[0].startswith("name")
