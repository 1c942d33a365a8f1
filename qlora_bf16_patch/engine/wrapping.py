"""Our wrappers on methods of classes and functions of modules: one over another, the first registered innermost.

Another party may wrap or replace the same attribute at any time, and nobody tells. So the truth is read from the
attribute at each change, and nothing but our own functions, known by identity, is ever taken away.
"""

from __future__ import annotations

import functools
import operator
import threading
import types
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .patch import Factory, Unsupported

if TYPE_CHECKING:
    from .installation import Installation

# Held while what stands in place changes, and who wants it. Never while foreign code runs: a factory imports, and an
# import waits for the thread that holds that module's lock, which may want this one. A log handler has a lock, too.
LOCK = threading.RLock()


class Target(NamedTuple):
    """A function to be wrapped: ``owner`` is a class or a module, ``attribute`` its name there, perhaps inherited."""

    owner: Any
    attribute: str
    factory: Factory


class Layer(NamedTuple):
    """A wrapper that stands in place, and what it was put over."""

    installation: Installation
    target: Target
    function: Any
    original: Any
    inherited: bool  # nothing stood in the owner's own __dict__


class Change(NamedTuple):
    """One target's new layers, bottom first, in the place of the old ones; valid as long as ``top`` stands there.

    None where the installation's wrapper stands there already.
    """

    target: Target
    top: Any
    inherited: bool
    old: list[Layer]
    new: list[Layer]


_CALLS_ANOTHER = (types.FunctionType, types.MethodType, functools.partial)
_placed: dict[Any, Layer] = {}  # by wrapper
_originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # by wrapper, of those taken out as well


def upstream(function: Any) -> Any:
    """What stands beneath our wrappers: upstream's own function, or another party's wrapper, which is left closed."""
    while is_ours(function):
        function = _originals[function]
    return function


def is_ours(function: Any) -> bool:
    """Whether the function is a wrapper of ours. A proxy of one compares equal to it and is another party's."""
    return type(function) is types.FunctionType and function in _originals


def plan(installation: Installation, targets: Iterable[Target]) -> list[Change]:
    """Run the factories for all targets that lack the installation's wrapper. It holds no lock and changes nothing.

    Raises:
        Unsupported: a target is gone, is no plain function, or a factory refuses it. A factory may raise anything else.
    """
    return [_plan(installation, target) for target in dict.fromkeys(targets)]


def commit(changes: list[Change]) -> bool:
    """Put planned wrappers in place, all or none.

    Returns:
        False if somebody has changed a target since the plan was made.
    """
    with LOCK:
        if any(current(change.target.owner, change.target.attribute) is not change.top for change in changes):
            return False
        done: list[Change] = []
        try:
            for change in filter(operator.attrgetter("new"), changes):
                setattr(change.target.owner, change.target.attribute, change.new[-1].function)
                done.append(change)
        except Exception:  # a class written in C refuses
            for change in done:
                _put_back(change.target, change.top, change.inherited)
            raise
        for change in changes:
            for layer in change.old:
                _forget(layer)
            for layer in change.new:
                _placed[layer.function] = layer
                layer.installation.layers.append(layer)
        return True


def take_out(layer: Layer) -> bool:
    """Put back what a wrapper was put over, if the wrapper is on top; otherwise it stays, beneath another one."""
    with LOCK:
        if vars(layer.target.owner).get(layer.target.attribute) is not layer.function:
            return False
        _put_back(layer.target, layer.original, layer.inherited)
        _forget(layer)
        return True


def current(owner: Any, attribute: str) -> Any:
    """What stands at an attribute, unbound; None if nothing does."""
    if not isinstance(owner, type):
        return getattr(owner, attribute, None)
    return next((vars(cls)[attribute] for cls in owner.__mro__ if attribute in vars(cls)), None)


def covers(owner: Any, attribute: str, layers: Iterable[Layer]) -> bool:
    """Whether a call of ``owner.attribute`` reaches one of the wrappers, perhaps through another party's function."""
    return reaches([current(owner, attribute)], {layer.function for layer in layers}, owner)


def outermost(function: Any, cls: type) -> Any:
    """The topmost of our wrappers that stand directly over a function of the class; the function, if none does."""
    over: Any = function
    while over is not None:
        function = over
        layers = (layer for layer in _placed.values() if layer.original is function)
        over = next((layer.function for layer in layers if layer.target.owner in cls.__mro__), None)
    return function


def _plan(installation: Installation, target: Target) -> Change:
    owner, attribute = target.owner, target.attribute
    with LOCK:
        top, missing = current(owner, attribute), attribute not in vars(owner)
        if covers(owner, attribute, installation.layers):
            return Change(target, top, missing, [], [])
        above = list(_later(installation, top, target))
    below = above[-1].original if above else top
    if not hasattr(below, "__code__"):
        kind = "is gone" if below is None else f"is a {type(below).__name__}, not a function with Python code"
        raise Unsupported(f"{owner.__name__}.{attribute} {kind}")
    new: list[Layer] = []
    inherited = above[-1].inherited if above else missing
    pairs = [(installation, target), *((layer.installation, layer.target) for layer in reversed(above))]
    for each, its_target in pairs:
        function = its_target.factory(_unbound(below, owner), each)
        if type(function) is not types.FunctionType or function is below:
            # torch.compile of an outer module bypasses a wrapt.FunctionWrapper on a forward (torch 2.13.0).
            raise TypeError(f"the factory of {each.name} must return a new plain function, not {function!r}")
        _originals[function] = below
        new.append(Layer(each, its_target, function, below, inherited))
        below, inherited = function, False
    return Change(target, top, missing, above, new)


def _unbound(function: Any, owner: Any) -> Any:
    """What ``owner.attribute`` would give: called as it stands, a wrapt.FunctionWrapper is not told the instance."""
    bind = getattr(type(function), "__get__", None) if isinstance(owner, type) else None
    return bind(function, None, owner) if bind else function


def _later(installation: Installation, function: Any, target: Target) -> Iterator[Layer]:
    """The wrappers on top that belong above the installation's own, since they were registered after it."""
    while is_ours(function) and (layer := _placed.get(function)):
        if layer.target[:2] != target[:2] or layer.installation.rank < installation.rank:
            return
        yield layer
        function = layer.original


def _put_back(target: Target, original: Any, inherited: bool) -> None:
    if inherited:
        delattr(target.owner, target.attribute)
    else:
        setattr(target.owner, target.attribute, original)


def _forget(layer: Layer) -> None:
    _placed.pop(layer.function, None)
    layer.installation.layers.remove(layer)


def reaches(functions: Iterable[Any], wanted: Collection[Any], owner: Any) -> bool:
    """Whether one of the wanted functions is among the functions, or is held where wrappers hold what they call.

    Args:
        functions: what a call of a method of ``owner`` may begin with.
        wanted: the functions that are looked for.
        owner: a class or a module.
    """
    seen: list[Any] = []
    waiting = list(functions)
    while wanted and waiting and len(seen) < 100:  # a bound, for the sake of chains that nobody meant
        function = waiting.pop()
        if any(function is one for one in wanted):
            return True
        if not any(function is one for one in seen):
            seen.append(function)
            waiting += [held for held in _held(function, owner) if isinstance(held, _CALLS_ANOTHER)]
    return False


def _held(function: Any, owner: Any) -> list[Any]:
    """What another party's wrapper may call: not all of them set ``__wrapped__``."""
    if is_ours(function):
        return [_originals[function]]
    held = [getattr(function, "__wrapped__", None)]
    if type(function) is functools.partial:
        held += [function.func, *function.args]
    elif type(function) is types.MethodType:
        held.append(function.__func__)
    elif type(function) is types.FunctionType:
        names = function.__code__.co_names
        held += [_contents(cell) for cell in function.__closure__ or ()]
        held += function.__defaults__ or ()
        held += [function.__globals__.get(name) for name in names]
        held += [current(owner, name) for name in names] if isinstance(owner, type) else []
    else:
        held += getattr(function, "__dict__", {}).values()
    return held


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
