import dataclasses
import functools
import threading

import pytest

from qlora_bf16_patch.engine.environment import UnknownPatchError
from qlora_bf16_patch.engine.patch import Patch

from .registries import make_registry, says_patched


def row(registry):
    return registry.status()[0]


def test_uninstall_restores_the_very_object_and_enable_brings_the_patch_back(library):
    original = vars(library.Layer)["forward"]
    registry = make_registry()
    assert library.Layer().forward() == "patched"
    registry.uninstall()
    assert vars(library.Layer)["forward"] is original
    assert (row(registry).state, row(registry).decided_by) == ("off", "call (uninstall)")
    registry.enable()
    assert library.Layer().forward() == "patched"
    assert row(registry).state == "active"


def test_an_inherited_method_is_taken_out_again(library):
    library.Child = type("Child", (library.Layer,), {})
    registry = make_registry(attribute="Child.forward")
    assert (library.Child().forward(), library.Layer().forward()) == ("patched", "original")
    registry.uninstall()
    assert "forward" not in vars(library.Child)


def test_calls_are_idempotent(library):
    registry = make_registry()
    wrapper = vars(library.Layer)["forward"]
    for _ in range(2):
        registry.enable()
    assert vars(library.Layer)["forward"] is wrapper
    for _ in range(2):
        registry.disable("fake.*")
        assert library.Layer().forward() == "original"
    for _ in range(2):
        registry.uninstall()
    assert library.Layer().forward() == "original"


def test_a_method_bound_before_uninstall_runs_the_original(library):
    registry = make_registry()
    bound = library.Layer().forward
    assert bound() == "patched"
    registry.uninstall()
    assert bound() == "original"


def says_more(original, installation):
    @functools.wraps(original)
    def forward(self):
        return original(self) + "+" * installation.on

    return forward


def test_two_patches_of_one_method_stay_two_wrappers_however_often_they_are_toggled(library):
    original = vars(library.Layer)["forward"]
    registry = make_registry(load=lambda: says_more)
    registry.register(dataclasses.replace(registry._entries["fake.layer"].patch, name="fake.second"))
    for _ in range(5):
        with registry.disabled():
            assert library.Layer().forward() == "original"
        assert library.Layer().forward() == "original++"
    assert {status.state for status in registry.status()} == {"active"}
    registry.disable("fake.second")
    assert library.Layer().forward() == "original+"
    registry.uninstall()
    assert vars(library.Layer)["forward"] is original


def test_another_partys_wrapper_above_is_named_and_stays(library):
    registry = make_registry()

    def other(self):
        return "other"

    library.Layer.forward = other
    assert row(registry).state == "shadowed"
    assert "other" in row(registry).reason
    registry.uninstall()
    assert vars(library.Layer)["forward"] is other


def test_another_partys_wrapper_below_stays(library):
    def other(self):
        return "other"

    library.Layer.forward = other
    registry = make_registry()
    assert library.Layer().forward() == "patched"
    registry.uninstall()
    assert vars(library.Layer)["forward"] is other


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"attribute": "Gone.forward"}, "failed", "has no Gone.forward"),
        ({"load": lambda: 1 / 0}, "failed", "ZeroDivisionError"),
        ({"requires": ">=99"}, "skipped", "requires wrapt>=99, found "),
        ({"module": "not_imported"}, "pending", "not_imported is not imported yet"),
        ({"default": False}, "off", "default"),
    ],
)
def test_a_patch_that_is_not_in_place_says_why(library, fields, state, reason):
    original = vars(library.Layer)["forward"]
    status = row(make_registry(**fields))
    assert status.state == state
    assert reason in status.reason
    assert vars(library.Layer)["forward"] is original


def test_a_patch_that_was_off_is_installed_when_it_is_switched_on(library):
    registry = make_registry(default=False)
    with registry.enabled("fake.layer"):
        assert library.Layer().forward() == "patched"
    assert library.Layer().forward() == "original"
    assert row(registry).decided_by == "default"


def test_the_state_before_a_block_comes_back_after_an_error(library):
    registry = make_registry()
    with pytest.raises(KeyError), registry.disabled():
        assert library.Layer().forward() == "original"
        raise KeyError
    assert library.Layer().forward() == "patched"


@pytest.mark.parametrize(
    "environ",
    [{"QLORA_BF16_PATCH": " OFF "}, {"QLORA_BF16_PATCH_DISABLE": "fake.*"}],
)
def test_the_environment_outranks_calls_and_force_outranks_the_environment(library, environ):
    original = vars(library.Layer)["forward"]
    registry = make_registry(environ)
    registry.enable("fake.layer")
    assert vars(library.Layer)["forward"] is original
    assert (row(registry).state, row(registry).decided_by[:11]) == ("off", "environment")
    registry.enable("fake.layer", force=True)
    assert library.Layer().forward() == "patched"
    assert row(registry).decided_by == "call (forced)"


def test_the_environment_outranks_calls_after_an_uninstall_too(library):
    registry = make_registry({"QLORA_BF16_PATCH_DISABLE": "fake.*"})
    registry.uninstall()
    registry.enable()
    assert (row(registry).state, row(registry).decided_by) == ("off", "environment (QLORA_BF16_PATCH_DISABLE)")
    registry = make_registry({"QLORA_BF16_PATCH_ENABLE": "fake.*"})
    registry.uninstall()
    assert library.Layer().forward() == "original"
    registry.enable()
    assert library.Layer().forward() == "patched"


def test_blocks_that_overlap_leave_what_was_before_them(library):
    registry = make_registry()
    first, second = registry.disabled(), registry.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert library.Layer().forward() == "original"
    second.__exit__(None, None, None)
    assert library.Layer().forward() == "patched"
    assert row(registry).decided_by == "default"


def test_blocks_over_other_patches_do_not_hold_each_other(library):
    registry = make_registry()
    registry.register(Patch("fake.other", "", "", lambda: None, "", ""))
    first, second = registry.disabled("fake.layer"), registry.enabled("fake.other")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert library.Layer().forward() == "patched"
    second.__exit__(None, None, None)


def test_an_uninstall_inside_a_block_outlives_it(library):
    original = vars(library.Layer)["forward"]
    registry = make_registry()
    with registry.enabled():
        registry.uninstall()
    assert vars(library.Layer)["forward"] is original
    assert row(registry).state == "off"
    registry.enable()
    assert library.Layer().forward() == "patched"


def test_a_call_inside_a_block_counts_until_its_end(library):
    registry = make_registry(default=False)
    with registry.disabled():
        registry.enable("fake.layer")
        assert library.Layer().forward() == "patched"
    assert library.Layer().forward() == "original"


def test_an_unknown_name_changes_nothing_and_suggests(library):
    registry = make_registry()
    with pytest.raises(UnknownPatchError, match=r"fake\.lyer.*Did you mean 'fake\.layer'"):
        registry.disable("fake.layer", "fake.lyer")
    assert library.Layer().forward() == "patched"


def test_a_name_is_registered_once(library):
    registry = make_registry()
    with pytest.raises(ValueError, match="already"):
        registry.register(registry._entries["fake.layer"].patch)


def test_threads_that_toggle_leave_one_wrapper(library):
    registry = make_registry()
    wrapper = vars(library.Layer)["forward"]

    def toggle():
        for _ in range(200):
            registry.disable()
            registry.enable()

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vars(library.Layer)["forward"] is wrapper
    assert library.Layer().forward() == "patched"


class Point:
    """What importlib.metadata gives for an entry point."""

    name, value = "third.party", "third_party:PATCH"

    def __init__(self, load):
        self.load = load


def test_a_third_partys_entry_point_is_a_patch(library):
    registry = make_registry(default=False)
    patch = registry._entries["fake.layer"].patch
    third = type(patch)("third.party", patch.module, patch.attribute, lambda: says_patched, "", "wrapt")
    registry.register_entry_point(Point(lambda: third))
    assert [status.state for status in registry.status()] == ["off", "active"]


@pytest.mark.parametrize("load", [lambda: 1 / 0, lambda: "no patch"], ids=["raises", "gives something else"])
def test_a_broken_entry_point_is_a_failed_row(library, load):
    registry = make_registry()
    registry.register_entry_point(Point(load))
    status = registry.status()[1]
    assert (status.name, status.state) == ("third.party", "failed")
    assert "Error" in status.reason
