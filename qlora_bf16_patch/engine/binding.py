"""Our functions as the forward of single objects, so that the other objects of their class pay nothing.

An object gets a bound method as an instance attribute, and beside it, in :data:`SHADOWED`, what each binding shadows.
Both are plain values: ``copy.deepcopy`` binds them to the copy, and a pickle holds the methods' name alone, so it loads
without this package; the loaded object has its class' own forward there.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .wrapping import LOCK, current, outermost, upstream

if TYPE_CHECKING:
    from .installation import Installation

# On a bound object: by the installation's name, the callable that its binding shadows on this object, None for the
# class' own forward. It is replaced, never written to, since a shallow copy of the object shares it.
SHADOWED = "_qlora_bf16_patch_shadowed"
# accelerate calls the method that it found and keeps in `_old_forward` (hooks.py, add_hook_to_module).
FORWARDS = ("_old_forward", "forward")

_NOTHING: dict[str, Any] = {}
_binders: weakref.WeakKeyDictionary[Any, Installation] = weakref.WeakKeyDictionary()  # by the function that they bound
_known: weakref.WeakSet[Any] = weakref.WeakSet()  # objects that were bound in this process
_rebound: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # attribute to kept function

Place = tuple[str, str]  # ("", attribute of the object) or (SHADOWED, name of the installation that shadows)


def call_shadowed(installation: Installation, instance: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what the installation's binding shadows: another binding, another party's forward, else the class'.

    Reads of plain dicts alone: it is on a hot path, and Dynamo traces it.
    """
    shadowed = instance.__dict__.get(SHADOWED, _NOTHING).get(installation.name)
    return type(instance).forward(instance, *args, **kwargs) if shadowed is None else shadowed(*args, **kwargs)


def shadows(installation: Installation, instance: Any) -> bool:
    """Whether there is more beneath the installation's binding than the class' own forward."""
    return instance.__dict__.get(SHADOWED, _NOTHING).get(installation.name) is not None


def bind(installation: Installation, instance: Any, function: Callable[..., Any]) -> None:
    """See :meth:`Installation.bind`."""
    function.__name__ = "forward"  # a pickle of a bound method holds this name
    with LOCK:
        _binders[function] = installation
        was_bound = instance in installation.bound
        _adopt(instance)
        installation.bound[instance] = function
        installation.unbound.pop(instance, None)
        _known.add(instance)
        for place, method in _places(instance):
            if _binders[method.__func__].name == installation.name:
                if method.__func__ is not function:  # its class was changed
                    _write(instance, {place: types.MethodType(function, instance)})
                return
        if not was_bound:  # else beneath another party's wrapper
            place = _bottom(instance, _attribute(instance), installation.rank)
            below = (SHADOWED, installation.name)
            _write(instance, {below: _read(instance, place), place: types.MethodType(function, instance)})


def unbind(installation: Installation, instance: Any) -> bool:
    """Take an installation's binding out again, unless another party's wrapper stands over it."""
    with LOCK:
        for place, method in _places(instance):
            if _binders[method.__func__] is not installation:
                continue
            below = _read(instance, (SHADOWED, installation.name))
            if below is None and place[0] == "" and place[1] != "forward":  # whoever moved it calls it
                below = types.MethodType(current(type(instance), "forward"), instance)
            _write(instance, {place: below})
            _forget(instance, installation.name)
            installation.unbound[instance] = installation.bound.pop(instance)
            return True
        return False


def rebind(instance: Any, attribute: str) -> bool:
    """See :meth:`Installation.rebind`."""
    with LOCK:
        place = _bottom(instance, attribute)
        kept = _read(instance, place)
        if type(kept) is not types.MethodType or kept.__self__ is not instance:
            return False
        function = outermost(kept.__func__, type(instance))
        if function is kept.__func__:
            return False
        _rebound.setdefault(instance, {}).setdefault(attribute, upstream(kept.__func__))
        _write(instance, {place: types.MethodType(function, instance)})
        return True


def refresh_rebound() -> None:
    """Let the objects of :func:`rebind` hold what stands on their classes now, their own method where nothing does."""
    with LOCK:
        for instance, attributes in list(_rebound.items()):
            for attribute, kept in attributes.items():
                place = _bottom(instance, attribute)
                method, function = _read(instance, place), outermost(kept, type(instance))
                if upstream(getattr(method, "__func__", None)) is kept and method.__func__ is not function:
                    _write(instance, {place: types.MethodType(function, instance)})


def _attribute(instance: Any) -> str:
    return next((name for name in FORWARDS if name in vars(instance)), FORWARDS[-1])


def _read(instance: Any, place: Place) -> Any:
    return (vars(instance).get(SHADOWED, _NOTHING) if place[0] else vars(instance)).get(place[1])


def _write(instance: Any, values: dict[Place, Any]) -> None:
    """The shadowed ones first, so that a thread that calls the object meanwhile finds what it needs."""
    shadowed = {name: value for (where, name), value in values.items() if where}
    if shadowed:
        vars(instance)[SHADOWED] = vars(instance).get(SHADOWED, _NOTHING) | shadowed
    for (where, name), value in values.items():
        if not where and value is None:
            del vars(instance)[name]
        elif not where:
            vars(instance)[name] = value


def _forget(instance: Any, name: str) -> None:
    shadowed = {key: value for key, value in vars(instance)[SHADOWED].items() if key != name}
    if shadowed:
        vars(instance)[SHADOWED] = shadowed
    else:
        del vars(instance)[SHADOWED]


def _binder(value: Any) -> Installation | None:
    """Whose binding a value is, on whatever object."""
    if type(value) is not types.MethodType or type(value.__func__) is not types.FunctionType:
        return None
    return _binders.get(value.__func__)


def _bottom(instance: Any, attribute: str, rank: int = -1) -> Place:
    """The place beneath all bindings that start at an attribute, or beneath those of installations after ``rank``."""
    place: Place = ("", attribute)
    value = _read(instance, place)
    while (binder := _binder(value)) and value.__self__ is instance and binder.rank > rank:
        place = (SHADOWED, binder.name)
        value = _read(instance, place)
    return place


def _places(instance: Any) -> Iterator[tuple[Place, types.MethodType]]:
    """Where this object holds bindings. An attribute may hold another object's method, which is none of its own."""
    for where, values in (("", vars(instance)), (SHADOWED, vars(instance).get(SHADOWED, _NOTHING))):
        for name, value in list(values.items()):
            if _binder(value) and value.__self__ is instance:
                yield (where, name), value


def _adopt(instance: Any) -> None:
    """Make a copy's bindings its own, and forget what a pickle has left of them."""
    if SHADOWED not in vars(instance) or instance in _known:
        return
    # copy.copy leaves the methods bound to the original.
    places = [("", name) for name in FORWARDS] + [(SHADOWED, name) for name in vars(instance)[SHADOWED]]
    for place in places:
        method = _read(instance, place)
        if _binder(method) and method.__self__ is not instance:
            _write(instance, {place: types.MethodType(method.__func__, instance)})
    found = [method.__func__ for _, method in _places(instance)]
    for function in found:
        _binders[function].bound.setdefault(instance, function)
    if not found:
        del vars(instance)[SHADOWED]
        left = getattr(vars(instance).get("forward"), "__func__", None)
        if left is not None and upstream(left) is upstream(current(type(instance), "forward")):
            del vars(instance)["forward"]
