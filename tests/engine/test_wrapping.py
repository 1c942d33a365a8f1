"""Wrappers on one method: their order, other parties among them, and what comes back."""

import functools
import itertools
import sys
import types

import pytest
import wrapt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qlora_bf16_patch.engine.installation import Installation, upstream
from qlora_bf16_patch.engine.patch import Patch, Unsupported

from .registries import make_registry, make_registry_of, says_its_name, says_patched


def call(library):
    return library.Layer().forward().split()


def states(registry):
    return {status.name: status.state for status in registry.status()}


ORDERS = list(itertools.permutations(["first", "second", "third"]))


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_the_newest_wrapper_is_on_top_and_enable_after_uninstall_keeps_the_order_of_registration(library, order):
    original = vars(library.Layer)["forward"]
    registry = make_registry_of("first", "second", "third")
    registry.uninstall()
    for count, name in enumerate(order, 1):
        registry.enable(f"fake.{name}")
        assert call(library) == [*reversed(order[:count]), "original"]
    registry.uninstall()
    assert vars(library.Layer)["forward"] is original
    registry.enable()
    assert call(library) == ["third", "second", "first", "original"]


def test_each_factory_can_look_at_upstreams_own_function(library):
    original = vars(library.Layer)["forward"]
    seen = []

    def looks(function, installation):
        seen.append(upstream(function))
        return says_its_name(function, installation)

    registry = make_registry_of("first", "second")
    registry.register(Patch("fake.third", "fake_library", "Layer.forward", lambda: looks))
    registry.uninstall()
    registry.enable("fake.third")
    registry.enable()
    assert seen == [original, original]


def test_another_partys_wrapper_is_not_looked_through_for_upstreams_own_function(library):
    original = vars(library.Layer)["forward"]
    theirs = library.Layer.forward = functools.wraps(original)(lambda self: "theirs " + original(self))
    make_registry_of("first", "second")
    assert call(library) == ["second", "first", "theirs", "original"]
    assert upstream(library.Layer.forward) is theirs


def wrapped_by(library, way):
    """Another library's wrapper around the current method of the class."""
    below = library.Layer.forward
    if way == "functools.wraps":
        library.Layer.forward = functools.wraps(below)(lambda self: "theirs " + below(self))
    elif way == "wrapt":
        wrapt.wrap_function_wrapper(library, "Layer.forward", lambda wrapped, *_: "theirs " + wrapped())
    else:
        library.Layer.forward = lambda self: "theirs " + below(self)


@pytest.mark.parametrize("way", ["functools.wraps", "wrapt"])
def test_a_wrapper_that_says_that_it_wraps_ours_leaves_it_active_and_nothing_is_called_twice(library, way):
    registry = make_registry_of("first", "second")
    wrapped_by(library, way)
    theirs = vars(library.Layer)["forward"]
    for _ in range(2):
        assert call(library) == ["theirs", "second", "first", "original"]
        assert set(states(registry).values()) == {"active"}
        registry.uninstall()
        assert vars(library.Layer)["forward"] is theirs
        assert call(library) == ["theirs", "original"]
        registry.enable()


def test_a_wrapper_that_does_not_say_what_it_wraps_is_called_once_however_often_ours_come_back(library):
    registry = make_registry_of("first", "second")
    wrapped_by(library, "closure")
    theirs = vars(library.Layer)["forward"]
    assert call(library) == ["theirs", "second", "first", "original"]
    for row in registry.status():
        assert row.state == "shadowed"
        assert "which does not say what it wraps (if it calls the function that was there" in row.reason
    for _ in range(3):
        registry.enable()
        assert call(library) == ["second", "first", "theirs", "second", "first", "original"]
        assert set(states(registry).values()) == {"active"}
        registry.uninstall()
        assert vars(library.Layer)["forward"] is theirs
        assert call(library) == ["theirs", "original"]


def test_a_function_that_only_claims_to_be_upstreams_is_reported_as_a_replacement(library):
    original = library.Layer.forward
    registry = make_registry_of("first")
    for replacement in (original, functools.wraps(original)(lambda self: "theirs")):
        library.Layer.forward = replacement
        (row,) = registry.status()
        assert row.state == "shadowed"
        assert "Layer.forward was replaced by" in row.reason
        assert "does not say" not in row.reason


@pytest.mark.parametrize("way", [functools.partial, lambda ours: types.MethodType(functools.wraps(ours)(ours), 1)])
def test_a_partial_and_a_bound_method_of_our_wrapper_leave_it_active(library, way):
    library.function = lambda *args: "original"
    registry = make_registry(attribute="function", load=lambda: lambda original, installation: lambda *args: "patched")
    library.function = way(library.function)
    assert library.function() == "patched"
    assert set(states(registry).values()) == {"active"}


def test_a_wrapper_that_says_to_wrap_itself_is_a_replacement(library):
    registry = make_registry_of("first")
    theirs = library.Layer.forward = lambda self: "theirs"
    theirs.__wrapped__ = theirs
    assert states(registry) == {"fake.first": "shadowed"}


def test_another_partys_wrapper_between_ours_keeps_its_place(library):
    registry = make_registry_of("first", "second", options=["second"])
    wrapped_by(library, "functools.wraps")
    theirs = vars(library.Layer)["forward"]
    registry.enable("fake.second")
    assert call(library) == ["second", "theirs", "first", "original"]
    registry.uninstall()
    assert vars(library.Layer)["forward"] is theirs
    registry.enable("fake.first")
    assert call(library) == ["theirs", "first", "original"]
    registry.enable("fake.second")
    assert call(library) == ["second", "theirs", "first", "original"]


def test_another_partys_wrapt_wrapper_beneath_ours_is_given_the_instance_as_without_us(library):
    instances = []

    def theirs(wrapped, instance, args, kwargs):
        instances.append(instance)
        return "theirs " + wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(library, "Layer.forward", theirs)
    top = vars(library.Layer)["forward"]
    registry = make_registry_of("first", "second")
    layer = library.Layer()
    assert layer.forward().split() == ["second", "first", "theirs", "original"]
    assert instances == [layer]
    registry.uninstall()
    assert vars(library.Layer)["forward"] is top


def test_a_wrapper_that_another_party_took_away_again_is_patched_as_before(library):
    registry = make_registry_of("first")
    ours = vars(library.Layer)["forward"]
    wrapped_by(library, "closure")
    library.Layer.forward = ours
    registry.enable()
    assert call(library) == ["first", "original"]


def test_a_replacement_shadows_until_enable_wraps_it(library):
    registry = make_registry_of("first")
    library.Layer.forward = lambda self: "replacement"
    assert states(registry) == {"fake.first": "shadowed"}
    assert call(library) == ["replacement"]
    registry.enable()
    assert states(registry) == {"fake.first": "active"}
    assert call(library) == ["first", "replacement"]


def test_the_end_of_a_block_wraps_what_was_replaced_inside_it(library):
    registry = make_registry_of("first")
    with registry.disabled():
        library.Layer.forward = lambda self: "replacement"
    assert states(registry) == {"fake.first": "active"}
    assert call(library) == ["first", "replacement"]


def test_a_block_after_an_uninstall_leaves_the_very_object(library):
    original = vars(library.Layer)["forward"]
    registry = make_registry_of("first", "second")
    registry.uninstall()
    with registry.enabled():
        assert call(library) == ["second", "first", "original"]
    assert vars(library.Layer)["forward"] is original


def test_several_targets_are_patched_all_or_none(library):
    library.Other = type("Other", (), {"forward": lambda self: "other"})
    both = ("Layer.forward", "Other.forward")
    registry = make_registry(attribute=both)
    assert (library.Layer().forward(), library.Other().forward()) == ("patched", "patched")
    registry.uninstall()
    assert (library.Layer().forward(), library.Other().forward()) == ("original", "other")
    original = vars(library.Layer)["forward"]
    with pytest.warns(RuntimeWarning, match=r"has no Gone\.forward"):
        make_registry(attribute=("Layer.forward", "Gone.forward"))
    assert vars(library.Layer)["forward"] is original


class Refuses(type):
    """A class that lets nobody set its attributes, as one written in C."""

    def __setattr__(cls, name, value):
        raise TypeError("immutable")


def test_a_target_that_cannot_be_set_leaves_the_others_of_its_patch_alone(library):
    original = vars(library.Layer)["forward"]
    library.Sealed = Refuses("Sealed", (), {"forward": lambda self: "sealed"})
    with pytest.warns(RuntimeWarning, match="TypeError: immutable"):
        registry = make_registry(attribute=("Layer.forward", "Sealed.forward"))
    assert states(registry) == {"fake.layer": "failed"}
    assert vars(library.Layer)["forward"] is original
    assert library.Sealed().forward() == "sealed"


def test_an_inherited_method_is_beneath_all_wrappers_and_goes_with_the_last_one(library):
    child = type("Child", (library.Layer,), {})
    first, second = Installation("fake.first"), Installation("fake.second")
    first.on = second.on = True
    first.wrap(child, "forward", says_its_name)
    second.wrap(child, "forward", says_its_name)
    assert child().forward() == "second first original"
    assert not first.restore()
    assert child().forward() == "second original"
    assert second.restore()
    assert first.restore()
    assert "forward" not in vars(child)


@pytest.mark.parametrize("give", [lambda original: original, functools.partial, lambda original: None])
def test_a_factory_must_give_a_new_plain_function(library, give):
    with pytest.raises(TypeError, match="plain function"):
        Installation().wrap(library.Layer, "forward", lambda original, installation: give(original))


def test_a_vanished_method_is_unsupported(library):
    with pytest.raises(Unsupported, match=r"Layer\.gone is gone"):
        Installation().wrap(library.Layer, "gone", says_patched)


def kept_before(library):
    """An object of which accelerate has kept the method, before the patches came."""
    layer = library.Layer()
    layer._old_forward = layer.forward
    return layer


def test_a_kept_method_becomes_the_patched_one_and_comes_back(library):
    layer = kept_before(library)
    registry = make_registry_of("first", "second")
    assert layer._old_forward() == "original"
    assert registry.installation("fake.first").rebind(layer)
    assert layer._old_forward() == "second first original"
    assert not registry.installation("fake.first").rebind(layer)
    registry.uninstall()
    assert layer._old_forward == types.MethodType(library.Layer.forward, layer)
    registry.enable()
    assert layer._old_forward() == "second first original"


def test_a_kept_method_of_another_party_stays_whatever_it_says_to_wrap(library):
    original = vars(library.Layer)["forward"]
    theirs = functools.wraps(original)(lambda self: "theirs " + original(self))
    layer = library.Layer()
    kept = layer._old_forward = types.MethodType(theirs, layer)
    registry = make_registry_of("first")
    assert not registry.installation("fake.first").rebind(layer)
    assert vars(layer)["_old_forward"] is kept


def test_a_kept_method_becomes_what_its_class_has_then(library):
    layer = kept_before(library)
    registry = make_registry_of("first", "second", options=["second"])
    registry.installation("fake.first").rebind(layer)
    wrapped_by(library, "functools.wraps")
    registry.enable("fake.second")
    assert layer._old_forward() == library.Layer().forward()
    registry.disable()
    assert layer._old_forward() == library.Layer().forward()


class Toggling(RuleBasedStateMachine):
    """Whatever is switched, and whoever wraps meanwhile: all patches that are on are called, and each library once.

    A patch is called again over a wrapper that does not say what it wraps, and else once.
    """

    names = ("first", "second", "third")

    def __init__(self):
        super().__init__()

        class Layer:
            def forward(self):
                return "original"

        self.library = sys.modules["fake_library"] = types.ModuleType("fake_library")
        self.library.Layer = Layer
        self.registry = make_registry_of(*self.names, options=["third"])
        self.on = {"first", "second"}
        self.theirs = []  # another party's wrappers, the last one on top when it was put there

    def teardown(self):
        del sys.modules["fake_library"]

    @rule(name=st.sampled_from(names))
    def enable(self, name):
        self.registry.enable(f"fake.{name}")
        self.on.add(name)

    @rule(name=st.sampled_from(names))
    def disable(self, name):
        self.registry.disable(f"fake.{name}")
        self.on.discard(name)

    @rule(take_out=st.booleans())
    def reset(self, take_out):
        if take_out:
            self.registry.uninstall()
        self.registry.reset()
        self.on = {"first", "second"}

    @rule()
    def uninstall(self):
        self.registry.uninstall()
        self.on = set()

    @precondition(lambda self: len(self.theirs) < 3)
    @rule(way=st.sampled_from(["functools.wraps", "wrapt", "closure"]))
    def wrap(self, way):
        wrapped_by(self.library, way)
        self.theirs.append(way)

    @invariant()
    def each_is_called(self):
        calls, silent = call(self.library)[:-1], self.theirs.count("closure")
        assert calls.count("theirs") == len(self.theirs)
        assert {name for name in calls if name != "theirs"} == self.on
        assert all(calls.count(name) <= 1 + silent for name in self.on)
        active = {name[5:] for name, state in states(self.registry).items() if state == "active"}
        assert active <= self.on if silent else active == self.on


TestToggling = Toggling.TestCase
TestToggling.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
