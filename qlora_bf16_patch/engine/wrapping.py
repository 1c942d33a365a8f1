"""Wrappers on methods of classes and functions of modules. The newest one is on top of what it finds.

Another library may wrap or replace the same attribute at any time, unnoticed. So the attribute is read at each change,
and only functions of our own, known by identity, are ever taken out.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from .patch import Factory, Unsupported

# Held while wrappers and decisions change. Never while foreign code runs: a factory imports, and an import waits for
# the thread that holds that module's lock, which may want this one. A log handler has a lock, too.
LOCK = threading.RLock()


class Target(NamedTuple):
    """A function to be wrapped: ``owner`` is a class or a module, ``attribute`` its name there, perhaps inherited."""

    owner: Any
    attribute: str
    factory: Factory


class Layer(NamedTuple):
    """A wrapper, and the function that it was put over. The two are one where nothing has to be put there."""

    target: Target
    function: Any
    original: Any
    inherited: bool  # the owner's own __dict__ held nothing


_originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # by wrapper, of those taken out as well


def upstream(function: Any) -> Any:
    """What is beneath our wrappers: upstream's own function, or another library's wrapper."""
    while is_ours(function):
        function = _originals[function]
    return function


def is_ours(function: Any) -> bool:
    """Whether the function is a wrapper of ours. A proxy of one compares equal to it and is another library's."""
    return type(function) is types.FunctionType and function in _originals


def plan(target: Target, layers: Iterable[Layer], installation: Any) -> Layer:
    """Run the factory if no call of the target reaches one of the layers. It holds no lock and changes nothing.

    Raises:
        Unsupported: the target is gone, is not a plain function, or the factory raises it. A factory may raise anything
            else.
    """
    owner, attribute, factory = target
    top, inherited = current(owner, attribute), attribute not in vars(owner)
    if covers(owner, attribute, layers):
        return Layer(target, top, top, inherited)
    if not hasattr(top, "__code__"):
        kind = "is gone" if top is None else f"is a {type(top).__name__}, not a function with Python code"
        raise Unsupported(f"{owner.__name__}.{attribute} {kind}")
    function: Callable[..., Any] = factory(_unbound(top, owner), installation)
    if type(function) is not types.FunctionType or function is top:
        # torch.compile of an outer module bypasses a wrapt.FunctionWrapper on a forward (torch 2.13.0).
        raise TypeError(f"the factory of {installation.name} must return a new plain function, not {function!r}")
    _originals[function] = top
    return Layer(target, function, top, inherited)


def commit(layers: list[Layer]) -> list[Layer] | None:
    """Put planned wrappers in place, all or none.

    Returns:
        Those that are new; None if somebody has changed a target since the plan was made.
    """
    with LOCK:
        if any(current(layer.target.owner, layer.target.attribute) is not layer.original for layer in layers):
            return None
        done: list[Layer] = []
        try:
            for layer in layers:
                if layer.function is not layer.original:
                    setattr(layer.target.owner, layer.target.attribute, layer.function)
                    done.append(layer)
        except Exception:  # a class written in C cannot be changed
            for layer in done:
                _put_back(layer)
            raise
        return done


def take_out(layer: Layer) -> bool:
    """Restore what a wrapper was put over, if the wrapper is on top; otherwise it stays, beneath another one."""
    with LOCK:
        if vars(layer.target.owner).get(layer.target.attribute) is not layer.function:
            return False
        _put_back(layer)
        return True


def current(owner: Any, attribute: str) -> Any:
    """The value of an attribute, unbound; None if there is none."""
    if not isinstance(owner, type):
        return getattr(owner, attribute, None)
    return next((vars(cls)[attribute] for cls in owner.__mro__ if attribute in vars(cls)), None)


def covers(owner: Any, attribute: str, layers: Iterable[Layer]) -> bool:
    """Whether a call of ``owner.attribute`` reaches one of the wrappers, perhaps through another library's wrapper."""
    return reaches(current(owner, attribute), [layer.function for layer in layers])


def reaches(function: Any, wanted: Collection[Any]) -> bool:
    """Whether the function is one of the wanted ones, or says that it wraps one of them."""
    return any(one is each for one in chain(function) for each in wanted)


def chain(function: Any) -> Iterator[Any]:
    """The function, and beneath it what each one says to wrap, as ``functools.wraps``, ``partial`` and wrapt do.

    A wrapper that only closes over a function does not say so, and is the last one.
    """
    for _ in range(100):  # some wrap themselves, and a proxy may have every attribute
        if function is None:
            return
        yield function
        if is_ours(function):
            function = _originals[function]
        elif type(function) is types.MethodType:  # its attributes are those of its function
            function = function.__func__
        elif type(function) is functools.partial:
            function = getattr(function, "__wrapped__", function.func)
        else:
            function = getattr(function, "__wrapped__", None)


def _unbound(function: Any, owner: Any) -> Any:
    """What ``owner.attribute`` would return: a wrapt.FunctionWrapper that is called unbound gets no instance."""
    bind = getattr(type(function), "__get__", None) if isinstance(owner, type) else None
    return bind(function, None, owner) if bind else function


def _put_back(layer: Layer) -> None:
    owner, attribute, _ = layer.target
    if layer.inherited:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, layer.original)
