"""Functions that shadow the forward of single objects."""

import copy
import functools
import gc
import inspect
import itertools
import pickle
import subprocess
import sys
import threading
import weakref

import cloudpickle
import dill
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qlora_bf16_patch.engine.binding import unbind
from qlora_bf16_patch.engine.installation import Installation, call_shadowed


class Thing:
    def forward(self):
        return "original"


class Changed(Thing):
    def forward(self):
        return "changed"


def forward_of(installation):
    def forward(self):
        return (f"{installation.name} " if installation.on else "") + call_shadowed(installation, self)

    return forward


class Party:
    """An installation that binds its one function."""

    def __init__(self, name):
        self.installation = Installation(name)
        self.function = forward_of(self.installation)

    def bind(self, thing):
        self.installation.on = True
        self.installation.bind(thing, self.function)


def hook(thing):
    """As accelerate's add_hook_to_module: it keeps the method that it found, and calls it."""
    thing._old_forward, thing.forward = thing.forward, functools.partial(hooked, thing)


def hooked(thing):
    return "hooked " + thing._old_forward()


def unhook(thing):
    thing.forward = vars(thing).pop("_old_forward")


@pytest.fixture
def patched():
    return Party("patched")


@pytest.mark.parametrize("again", ["bind", "restore and rewrap"])
def test_a_wrapper_that_another_party_put_over_a_bound_method_does_not_recur(patched, again):
    installation, thing = patched.installation, Thing()
    patched.bind(thing)
    ours = thing.forward
    thing.forward = lambda: "theirs " + ours()
    if again == "bind":
        patched.bind(thing)
    else:
        installation.restore()
        installation.install(installation.targets)
        installation.on = True
    assert thing.forward() == "theirs patched original"


def test_a_bound_method_that_was_moved_is_found_and_a_deep_copy_is_bound_once(patched):
    installation, thing = patched.installation, Thing()
    patched.bind(thing)
    thing._old_forward, thing.forward = thing.forward, lambda: "hooked " + thing._old_forward()  # as accelerate
    copied = copy.deepcopy(Thing())
    patched.bind(copied)
    assert (thing.forward(), copied.forward()) == ("hooked patched original", "patched original")
    installation.restore()
    assert (thing.forward(), copied.forward()) == ("hooked original", "original")
    assert "forward" not in vars(copied)
    installation.install(installation.targets)
    installation.on = True
    assert (thing.forward(), copied.forward()) == ("hooked patched original", "patched original")


def test_a_hooked_object_that_is_bound_and_restored_has_the_very_attributes_that_it_had(patched):
    thing = Thing()
    hook(thing)
    before = dict(vars(thing))
    patched.bind(thing)
    assert thing.forward() == "hooked patched original"
    patched.installation.restore()
    assert vars(thing) == before


def test_another_partys_forward_of_the_object_is_shadowed_and_comes_back(patched):
    thing = Thing()
    theirs = thing.forward = lambda: "theirs"
    patched.bind(thing)
    assert thing.forward() == "patched theirs"
    patched.installation.restore()
    assert vars(thing) == {"forward": theirs}


def change_class(thing):
    thing.__class__ = Changed
    return thing


ORDERS = list(itertools.permutations(["first", "second", "third"]))


@pytest.mark.parametrize("again", [False, True], ids=["bound once", "bound again"])
@pytest.mark.parametrize("between", [lambda thing: thing, copy.deepcopy, copy.copy, change_class])
def test_patches_that_bind_one_object_are_each_called_once_and_leave_nothing(between, again):
    for order, out in itertools.product(ORDERS, ORDERS):
        parties = {name: Party(name) for name in sorted(order)}
        thing = Thing()
        for name in order:
            parties[name].bind(thing)
        other = between(thing)
        for name in order if again else ():
            parties[name].bind(other)
        inner = "changed" if type(other) is Changed else "original"
        left = [*reversed(order), inner]
        assert other.forward() == " ".join(left)
        for name in out:
            parties[name].installation.restore()
            left.remove(name)
            assert thing.forward() == " ".join([*left[:-1], type(thing).forward(thing)])
            if again or between is copy.deepcopy:
                assert other.forward() == " ".join(left)
        while any([party.installation.restore() for party in parties.values()]):
            pass  # those that were beneath another one
        assert vars(thing) == {}
        assert vars(other) == {} or (between is copy.copy and not again)


def test_a_deep_copy_is_restored_without_being_bound_again(patched):
    thing = Thing()
    patched.bind(thing)
    copied = copy.deepcopy(thing)
    patched.installation.restore()
    assert vars(copied) == {}


def test_what_is_not_bound_any_more_can_be_unbound_again(patched):
    thing = Thing()
    patched.bind(thing)
    assert [unbind(patched.installation, thing) for _ in range(2)] == [True, False]
    assert vars(thing) == {}


def test_an_object_is_freed_at_once_where_nobody_uses_it(patched):
    thing = Thing()
    patched.bind(thing)
    gone = weakref.ref(thing)
    gc.disable()
    try:
        del thing
        assert gone() is None
    finally:
        gc.enable()


class Static(Thing):
    @staticmethod
    def forward():
        return "static"


class OfTheClass(Thing):
    @classmethod
    def forward(cls):
        return cls.__name__


class Partial(Thing):
    forward = functools.partialmethod(lambda self, name: name, "partial")


class Callable:
    def __call__(self):
        return "callable"


class OfAnObject(Thing):
    forward = Callable()


class Descriptor:
    def __get__(self, instance, owner=None):
        return self if instance is None else functools.partial(str, "descriptor")


class Described(Thing):
    forward = Descriptor()


@pytest.mark.parametrize("cls", [Static, OfTheClass, Partial, OfAnObject, Described])
def test_a_forward_that_is_no_plain_method_is_called_as_python_does(patched, cls):
    thing = cls()
    expected = thing.forward()
    patched.bind(thing)
    for bound in (thing, copy.deepcopy(thing)):
        assert bound.forward() == f"patched {expected}"


@pytest.mark.parametrize("name", ["instance", "installation", "args", "kwargs", "function", "self"])
def test_any_keyword_reaches_the_objects_forward(patched, name):
    class Keywords:
        def forward(this, /, **kwargs):
            return kwargs

    def forward(this, /, **kwargs):
        return call_shadowed(patched.installation, this, **kwargs)

    thing = Keywords()
    patched.installation.bind(thing, forward)
    assert thing.forward(**{name: 1}) == {name: 1}


@pytest.mark.parametrize("pickler", [pickle, dill, cloudpickle])
def test_a_bound_object_is_pickled_by_every_serializer(patched, pickler):
    thing = Thing()
    patched.bind(thing)
    assert pickle.loads(pickler.dumps(thing)).forward() == "original"


def test_a_forward_looks_like_the_method_that_it_stands_for(patched):
    thing = Thing()
    patched.bind(thing)
    assert inspect.signature(thing.forward) == inspect.signature(Thing().forward)
    assert inspect.getsource(thing.forward) == inspect.getsource(Thing.forward)
    assert thing.forward.__name__ == "forward"
    assert thing.forward.__func__(thing) == "patched original"
    assert thing.forward.__func__(Changed()) == "changed"


def test_what_wraps_a_forward_copies_nothing_of_ours(patched):
    thing = Thing()
    patched.bind(thing)
    wrapped = functools.wraps(thing.forward)(lambda: "wrapped")
    assert set(vars(wrapped)) == {"__wrapped__"}
    hooked = functools.update_wrapper(functools.partial(hook, thing), thing.forward)
    assert not [name for name in vars(hooked) if not name.startswith("__")]


def test_a_forward_of_the_objects_own_is_pickled(patched):
    thing = Thing()
    thing.forward = len
    patched.bind(thing)
    assert vars(pickle.loads(pickle.dumps(thing)))["forward"] is len


def test_a_copy_is_known_to_all_patches_once_one_of_them_binds_it():
    first, second, thing = Party("first"), Party("second"), Thing()
    first.bind(thing)
    second.bind(thing)
    copied = copy.deepcopy(thing)
    first.bind(copied)
    second.installation.restore()
    first.installation.restore()
    assert vars(copied) == {}


def test_a_shallow_copy_that_is_bound_again_runs_on_itself(patched):
    class Named(Thing):
        def forward(self):
            return self.name

    thing = Named()
    thing.name = "thing"
    patched.bind(thing)
    copied = copy.copy(thing)
    copied.name = "copied"
    patched.bind(copied)
    assert (thing.forward(), copied.forward()) == ("patched thing", "patched copied")


def test_another_function_of_the_patch_takes_the_place_of_the_first_one():
    first, second, thing = Party("first"), Party("second"), Thing()
    first.bind(thing)
    second.bind(thing)

    def forward(self):
        return "new " + call_shadowed(first.installation, self)

    first.installation.bind(thing, forward)
    assert thing.forward() == "second new original"


class Other(Thing):
    pass


def test_a_method_of_another_bound_object_is_no_binding_of_the_object_that_holds_it(patched):
    child, parent = Thing(), Other()
    patched.bind(child)
    parent.forward = child.forward
    patched.bind(parent)
    assert parent.forward() == "patched patched original"
    patched.installation.restore()
    assert vars(parent)["forward"].__self__ is child


@pytest.mark.parametrize("hooks", [False, True], ids=["plain", "hooked"])
def test_a_pickled_object_loads_unpatched_and_can_be_bound_again(hooks):
    first, second, thing = Party("first"), Party("second"), Thing()
    first.bind(thing)
    second.bind(thing)
    if hooks:
        hook(thing)
    loaded = pickle.loads(pickle.dumps(thing))
    start = "hooked " if hooks else ""
    assert loaded.forward() == start + "original"
    second.bind(loaded)
    first.bind(loaded)
    assert loaded.forward() == start + "first second original"
    for party in (first, second):
        party.installation.restore()
    assert loaded.forward() == start + "original"
    assert set(vars(loaded)) == ({"forward", "_old_forward"} if hooks else set())


def test_a_pickle_of_a_bound_object_loads_where_the_package_is_not_installed(patched, tmp_path):
    (tmp_path / "things.py").write_text("class Thing:\n    def forward(self):\n        return 'original'\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import things

        thing = things.Thing()
        patched.bind(thing)
        (tmp_path / "thing.pickle").write_bytes(pickle.dumps(thing))
    finally:
        sys.path.remove(str(tmp_path))
    code = """
import pickle, sys
sys.modules["qlora_bf16_patch"] = None
print(pickle.load(open("thing.pickle", "rb")).forward())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("original\n", "")


def test_objects_are_not_kept_alive(patched):
    thing = Thing()
    patched.bind(thing)
    del thing
    gc.collect()
    assert len(patched.installation.bound) == 0


def test_two_installations_of_one_name_do_not_recur():
    old, new, thing = Party("same"), Party("same"), Thing()
    old.bind(thing)
    new.bind(thing)
    assert thing.forward() == "same original"
    old.installation.restore()
    assert thing.forward() == "same original"
    new.installation.restore()
    assert vars(thing) == {}


def test_threads_that_bind_and_restore_leave_nothing():
    things, errors = [Thing() for _ in range(20)], []
    parties = [Party(str(number)) for number in range(4)]

    def work(party):
        try:
            for _ in range(30):
                for thing in things:
                    party.bind(thing)
                    assert thing.forward().endswith("original")
                party.installation.restore()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(party,)) for party in parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    while any([party.installation.restore() for party in parties]):
        pass  # those that were beneath another one
    assert [vars(thing) for thing in things] == [{}] * len(things)


class Bindings(RuleBasedStateMachine):
    """Whatever is done to objects, in any order: every patch that is bound is called once."""

    names = st.sampled_from(["first", "second", "third"])
    which = st.integers(0, 7)

    def __init__(self):
        super().__init__()
        self.parties = {name: Party(name) for name in ("first", "second", "third")}
        self.things = [(Thing(), set())]  # each with the names that are bound

    def pick(self, which):
        return self.things[which % len(self.things)]

    @rule(name=names, which=which)
    def bind(self, name, which):
        thing, bound = self.pick(which)
        self.parties[name].bind(thing)
        bound.add(name)

    @rule(name=names)
    def restore_and_rewrap(self, name):
        self.parties[name].installation.restore()
        for thing, _ in self.things:
            assert name not in thing.forward()
        self.parties[name].installation.install(self.parties[name].installation.targets)
        self.parties[name].installation.on = True

    @rule(which=which)
    def deepcopy(self, which):
        thing, bound = self.pick(which)
        self.things.append((copy.deepcopy(thing), set(bound)))

    @rule(which=which)
    def load(self, which):
        self.things.append((pickle.loads(pickle.dumps(self.pick(which)[0])), set()))

    @rule(which=which)
    def change_class(self, which):
        self.pick(which)[0].__class__ = Changed

    @rule(which=which)
    def hook_or_unhook(self, which):
        thing = self.pick(which)[0]
        unhook(thing) if "_old_forward" in vars(thing) else hook(thing)

    @invariant()
    def each_is_called_once(self):
        for thing, bound in self.things:
            calls = thing.forward().split()
            inner = [name for name in calls if name != "hooked"]
            assert sorted(inner[:-1]) == sorted(bound)
            assert inner[-1] == "original" or type(thing) is Changed


TestBindings = Bindings.TestCase
TestBindings.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
