"""What a user hears: states that are true, reasons, warnings, notes, and what is on after which call."""

import functools
import importlib
import logging
import sys
import threading
import warnings

import pytest

from qlora_bf16_patch.engine.environment import Environment, UnknownPatchError
from qlora_bf16_patch.engine.patch import Patch, Unsupported
from qlora_bf16_patch.engine.registry import Registry

from .registries import make_registry, make_registry_of, says_patched


def row(registry):
    return registry.status()[0]


def refuses(original, installation):
    raise Unsupported("its layers have no scaling")


def raises(original, installation):
    return original.no_such_attribute


class Targets:
    """What a release may have where an older one had a method."""

    built_in = len
    partial = functools.partial(print)

    @classmethod
    def class_method(cls):
        return "original"

    @staticmethod
    def static_method():
        return "original"

    @property
    def a_property(self):
        return "original"


BROKEN = {
    "a factory that raises": ({"load": lambda: raises}, "AttributeError: 'function' object has no"),
    "a factory that refuses": ({"load": lambda: refuses}, "its layers have no scaling"),
    "a factory that is missing": ({"load": "qlora_bf16_patch.engine.patch:gone"}, "has no attribute 'gone'"),
    "a module that is missing": ({"load": "no_such_module:factory"}, "ModuleNotFoundError"),
    "a vanished method": ({"attribute": "Layer.gone"}, "has no Layer.gone"),
    "a vanished class": ({"attribute": "Gone.forward"}, "has no Gone.forward"),
    "a built-in function": ({"attribute": "Targets.built_in"}, "is a builtin_function_or_method, not a function"),
    "a partial": ({"attribute": "Targets.partial"}, "is a partial, not a function"),
    "a class method": ({"attribute": "Targets.class_method"}, "is a classmethod, not a function"),
    "a static method": ({"attribute": "Targets.static_method"}, "is a staticmethod, not a function"),
    "a property": ({"attribute": "Targets.a_property"}, "is a property, not a function"),
}


@pytest.mark.parametrize(("fields", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_patch_that_fails_says_why_warns_once_and_leaves_the_others_at_work(library, fields, reason):
    library.Targets = Targets
    attributes = dict(vars(Targets))
    patch = {"attribute": "Layer.forward", "load": lambda: says_patched, **fields}
    registry = Registry(Environment({}, []))
    with pytest.warns(RuntimeWarning) as told:
        registry.register(Patch("fake.broken", "fake_library", **patch, distribution="wrapt"))
        registry.register(Patch("fake.layer", "fake_library", "Layer.forward", lambda: says_patched))
        for _ in range(2):
            with registry.disabled():
                assert library.Layer().forward() == "original"
            with registry.enabled():
                assert library.Layer().forward() == "patched"
    broken, layer = registry.status()
    assert (broken.state, layer.state) == ("failed", "active")
    assert reason in broken.reason
    assert len(told) == 1
    text = str(told[0].message)
    assert f"fake.broken could not be installed on wrapt {broken.version}: {broken.reason}" in text
    assert "QLORA_BF16_PATCH_DISABLE=fake.broken" in text
    assert vars(Targets) == attributes
    registry.uninstall()
    assert library.Layer().forward() == "original"


def test_a_failed_patch_does_not_warn_while_it_is_off(library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry = make_registry(default=False, load=lambda: raises)
    assert row(registry).state == "off"


def test_where_warnings_are_errors_a_failure_is_logged_and_the_users_import_goes_on(library, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_registry(load=lambda: raises)
    assert "fake.layer could not be installed" in caplog.text


def test_a_patch_that_failed_is_tried_again_when_it_is_enabled(library):
    method = library.Layer.forward
    del library.Layer.forward
    with pytest.warns(RuntimeWarning, match="fake_library has no|has no Layer.forward"):
        registry = make_registry()
    library.Layer.forward = method
    registry.enable()
    assert (row(registry).state, library.Layer().forward()) == ("active", "patched")


@pytest.fixture
def real_library(tmp_path, monkeypatch):
    """A module with a file, which can be loaded again."""
    (tmp_path / "fake_library.py").write_text(
        "class Layer:\n    def forward(self):\n        return 'original'\n\ndef function():\n    return 'original'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_library", raising=False)
    yield importlib.import_module("fake_library")
    del sys.modules["fake_library"]


def test_a_class_that_was_loaded_again_is_not_active_until_enable_patches_it(real_library):
    registry, old = make_registry(), real_library.Layer
    original = registry.installation("fake.layer").layers[0].original
    importlib.reload(real_library)
    assert row(registry).state == "shadowed"
    assert "loaded again" in row(registry).reason
    registry.enable()
    assert (row(registry).state, real_library.Layer().forward()) == ("active", "patched")
    registry.uninstall()
    assert real_library.Layer().forward() == "original"
    assert vars(old)["forward"] is original


def function_patch(original, installation):
    return lambda: "patched" if installation.on else original()


def test_a_function_that_was_loaded_again_is_not_active_until_enable_patches_it(real_library):
    registry = make_registry(attribute="function", load=lambda: function_patch)
    importlib.reload(real_library)
    assert (row(registry).state, real_library.function()) == ("shadowed", "original")
    registry.enable()
    assert (row(registry).state, real_library.function()) == ("active", "patched")


def test_a_method_is_told_to_be_late_with_advice_about_guard_and_a_function_is_not(real_library):
    assert "guard" in row(make_registry()).notes[0]
    notes = row(make_registry(attribute="function", load=lambda: function_patch)).notes
    assert "guard" not in notes[0]
    assert "was imported before" in notes[0]


def test_the_factory_is_found_by_its_name(library):
    registry = make_registry(load="tests.engine.registries:says_patched")
    assert (row(registry).state, library.Layer().forward()) == ("active", "patched")


VERSIONS = [
    ("0.22.0", "0.21.2", "not tested with fake 0.22.0 (newest tested: 0.21.2)"),
    ("0.22.0.dev0", "0.21.2", "not tested with fake 0.22.0.dev0 (newest tested: 0.21.2)"),
    ("0.21.2", "0.21.2", None),
    ("0.21.2+cpu", "0.21.2", None),
    ("0.20", "0.21.2", None),
    ("unknown", "0.21.2", None),
    ("0.22.0", "", None),
]


@pytest.mark.parametrize(("version", "tested", "note"), VERSIONS)
def test_a_newer_release_than_the_tested_one_is_patched_with_a_note(library, monkeypatch, version, tested, note):
    monkeypatch.setattr("importlib.metadata.version", lambda distribution: version)
    status = row(make_registry(distribution="fake", requires="", tested=tested))
    assert (status.state, status.version) == ("active", version)
    assert [text for text in status.notes if "tested" in text] == ([note] if note else [])


def test_nothing_that_is_told_says_none_where_nothing_is_known(library, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda distribution: None)
    with pytest.warns(RuntimeWarning) as told:
        registry = make_registry(attribute="Gone.forward", requires=">=1", tested="1", distribution="fake")
    assert "None" not in row(registry).reason + str(told[0].message)


def test_a_replacement_without_a_module_is_told_without_a_none(library):
    registry = make_registry()
    replacement = library.Layer.forward = eval("lambda self: 1", {})
    replacement.__module__ = None
    assert row(registry).state == "shadowed"
    assert "None" not in row(registry).reason
    del library.Layer.forward
    assert row(registry).reason.startswith("Layer.forward is gone; ")


def is_on(registry):
    return {status.name[5:] for status in registry.status() if status.state == "active"}


def test_enable_without_names_means_the_defaults_and_disable_means_all(library):
    registry = make_registry_of("first", "option", options=["option"])
    registry.enable()
    assert is_on(registry) == {"first"}
    with registry.enabled():
        assert is_on(registry) == {"first"}
    registry.enable("*")
    assert is_on(registry) == {"first", "option"}
    registry.disable()
    assert is_on(registry) == set()
    registry.enable()
    assert is_on(registry) == {"first"}


def test_enable_without_names_means_the_options_of_the_environment_as_well(library):
    environ = {"QLORA_BF16_PATCH_ENABLE": "fake.option"}
    registry = make_registry_of("first", "option", "other", environ=environ, options=["option", "other"])
    registry.uninstall()
    registry.enable()
    assert is_on(registry) == {"first", "option"}


CALLS = {
    "disable": lambda registry: registry.disable(),
    "enable an option": lambda registry: registry.enable("fake.option"),
    "force": lambda registry: registry.disable("fake.byenv", force=True),
    "uninstall": lambda registry: registry.uninstall(),
    "a block": lambda registry: registry.disabled().__enter__(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_reset_returns_to_what_environment_and_defaults_say(library, call):
    environ = {"QLORA_BF16_PATCH_ENABLE": "fake.byenv"}
    registry = make_registry_of("first", "byenv", "option", environ=environ, options=["byenv", "option"])
    before = registry.status()
    block = call(registry)
    registry.reset()
    assert registry.status()[:2] == before[:2]
    assert [(status.state, status.decided_by) for status in registry.status()][2] == ("off", "default")
    assert library.Layer().forward() == "byenv first original"
    del block


def strictness(registry):
    return [registry.installation(status.name).strict for status in registry.status()]


def test_strict_is_a_block_that_may_overlap_and_leaves_what_was_before_it(library):
    registry = make_registry_of("first", "second")
    registry.installation("fake.second").strict = True
    outer, inner = registry.strict(), registry.strict()
    outer.__enter__()
    inner.__enter__()
    registry.register(Patch("fake.third", "fake_library", "Layer.forward", lambda: says_patched))
    assert strictness(registry) == [True, True, True]
    outer.__exit__(None, None, None)
    assert strictness(registry) == [True, True, True]
    inner.__exit__(None, None, None)
    assert strictness(registry) == [False, True, False]


def test_strict_by_the_environment_stays_after_a_block(library):
    registry = make_registry({"QLORA_BF16_PATCH_STRICT": "1"})
    with pytest.raises(KeyError), registry.strict():
        raise KeyError
    assert strictness(registry) == [True]


@pytest.mark.parametrize("call", ["enable", "disable", "enabled", "disabled"])
def test_a_call_with_the_name_of_a_patch_that_went_elsewhere_says_where(library, call):
    registry = Registry(Environment({}, ["fake.layer"], {"fake.gone": "fake.layer"}))
    registry.register(Patch("fake.layer", "fake_library", "Layer.forward", lambda: says_patched))
    for spelled in ("fake.gone", "*.gone"):
        with pytest.raises(UnknownPatchError, match=r"'fake\.gone' is now part of 'fake\.layer'"):
            block = getattr(registry, call)(spelled)
            block.__enter__()


def test_a_note_is_told_once_at_the_level_that_is_asked_for(library, caplog):
    installation = make_registry().installation("fake.layer")
    with caplog.at_level(logging.INFO, "qlora_bf16_patch"):
        for _ in range(2):
            installation.note("key", "text", logging.INFO)
    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", "text")]


def test_a_reporter_may_wait_for_another_thread_that_enables_a_patch(library):
    registry, done = make_registry(), threading.Event()

    def report():
        threading.Thread(target=lambda: (registry.enable("fake.layer"), done.set()), daemon=True).start()
        return [f"waited: {done.wait(5)}"]

    registry.installation("fake.layer").reporters.append(report)
    assert row(registry).notes[-1] == "waited: True"
