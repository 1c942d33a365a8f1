"""Our callables as the forward of single objects, so that the other objects of their class pay nothing.

A :class:`Bound` is an instance attribute and refers to its object weakly: an object that nobody uses is freed at once.
``copy.deepcopy`` binds the copy; a pickle (dill's and cloudpickle's, too) holds the name of the class' own forward, so
it loads without this package, and the loaded object is not bound.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .wrapping import LOCK, current, is_ours, reaches, upstream

if TYPE_CHECKING:
    from .installation import Installation

# accelerate keeps the method that it found in `_old_forward`, and calls it (hooks.py, add_hook_to_module).
KEPT = "_old_forward"
FORWARDS = (KEPT, "forward")


class _Attributes:
    pass


_attributes: Any = vars(_Attributes)["__dict__"]  # a Bound's own, see there


class Bound(_Attributes):
    """The forward of one object. A subclass has a ``__call__`` that calls :meth:`original`.

    Args:
        installation: of the patch.
        instance: must be hashable by identity and weakly referable, as modules are.

    Attributes:
        installation: of the patch.
        instance: gives the object, None where it is gone.
        below: what this one is put over, a callable that takes no object; None where that is the class' own forward,
            a method.
    """

    # inspect.getsourcefile, which torch.jit.script calls, takes what isinstance calls a function, a method or a frame.
    # Not a function: cloudpickle would save it by value. Nor a method: inspect would take the source of `__func__`.
    __class__ = property(lambda self: types.FrameType)
    f_code = property(lambda self: self.__wrapped__.__code__)
    # functools.wraps copies what is in it (accelerate's hooks, over `forward`): a model is not to hold our objects.
    __dict__ = property(lambda self: {})

    def __init__(self, installation: Installation, instance: Any) -> None:
        self.installation = installation
        self.instance: Callable[[], Any] = weakref.ref(instance)
        self.shadowed: Any = None  # what stood in the object's __dict__; None for nothing
        self.below: Any = None

    def original(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call what this one is put over."""
        below, instance = self.below, self.instance()
        return type(instance).forward(instance, *args, **kwargs) if below is None else below(*args, **kwargs)

    def put_over(self, shadowed: Any) -> None:
        """Remember what this one shadows on the object; None for the class' own forward."""
        instance = self.instance
        cls: Any = type(instance())
        own = current(cls, "forward")
        self.shadowed = self.below = shadowed
        self.__module__, self.__doc__ = getattr(own, "__module__", ""), getattr(own, "__doc__", "")  # as a method's
        if shadowed is None and type(own) is not types.FunctionType and not hasattr(own, "__code__"):
            # A static method, an object that can be called, a descriptor: as Python finds it on the object.
            bound = getattr(type(own), "__get__", lambda own, *_: own)
            self.below = lambda *args, **kwargs: bound(own, instance(), cls)(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """What this one stands for: ``inspect.signature`` and torch.jit.script look here."""
        instance = self.instance()
        return self.shadowed or current(type(instance), "forward").__get__(instance, type(instance))

    @property
    def __func__(self) -> Any:
        """As a method has it: accelerate makes another method of it (``prepare_model``)."""

        def forward(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
            call: Any = self if instance is self.instance() else type(instance).forward.__get__(instance)
            return call(*args, **kwargs)

        return functools.update_wrapper(forward, self.__wrapped__)

    def __getattr__(self, name: str) -> Any:
        if name in ("__wrapped__", "__func__", "instance", "shadowed"):
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        instance = copy.deepcopy(self.instance(), memo)  # the one that is being made
        return self.moved_to(instance, copy.deepcopy(self.shadowed, memo))

    def moved_to(self, instance: Any, shadowed: Any) -> Bound:
        """The same for another object."""
        other: Bound = object.__new__(type(self))
        _attributes.__set__(other, {**_attributes.__get__(self), "instance": weakref.ref(instance)})
        other.put_over(shadowed)
        with LOCK:
            self.installation.bound[instance] = other
        return other

    def __reduce__(self) -> Any:
        # By functions that every Python has.
        return (getattr, (self.instance(), "forward")) if self.shadowed is None else (max, ((self.shadowed,),))


class Function(Bound):
    """A plain function whose first argument is the object; it calls what it shadows with :func:`call_shadowed`."""

    def __init__(self, installation: Installation, instance: Any, function: Callable[..., Any]) -> None:
        super().__init__(installation, instance)
        self.function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.instance(), *args, **kwargs)


class AsItsClass(Bound):
    """In the place of a method that an object has kept from before its class was patched."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return type(self.instance()).forward(self.instance(), *args, **kwargs)


def call_shadowed(installation: Installation, instance: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call what the installation's binding shadows: another binding, another party's forward, else the class'."""
    own = instance.__dict__.get("forward")
    if type(own) is not Function or own.installation is not installation:  # beneath another one
        own = installation.bound[instance]
    return own.original(*args, **kwargs)


def bind(bound: Bound, again: bool = False) -> None:
    """Put a forward over what its object has, once for each installation's name.

    Args:
        bound: made for the object.
        again: put it on top, too, where another party has replaced the forward since.
    """
    installation, instance = bound.installation, bound.instance()
    with LOCK:
        _adopt(instance)
        installation.unbound.pop(instance, None)
        attribute = next((name for name in FORWARDS if name in vars(instance)), "forward")
        over, found = None, vars(instance).get(attribute)
        while _is_of(found, instance) and found.installation.name != installation.name:
            over, found = found, found.shadowed
        if _is_of(found, instance):
            if found.installation is installation and type(found) is type(bound) is not Function:
                return
            bound.put_over(found.shadowed)
        elif instance in installation.bound and not again:  # beneath another party's wrapper
            return
        else:
            over = None
            bound.put_over(vars(instance).get(attribute))
        installation.bound[instance] = bound
        if over is None:
            vars(instance)[attribute] = bound
        else:
            over.put_over(bound)


def unbind(installation: Installation, instance: Any) -> bool:
    """Take an installation's forward out again, if it is on top; otherwise it stays, beneath another one."""
    with LOCK:
        own, mine = vars(instance), installation.bound.get(instance)  # another thread may have been here
        for attribute in FORWARDS if mine is not None else ():
            if own.get(attribute) is mine:
                below = own.pop(attribute).shadowed
                if below is None and attribute == KEPT:  # whoever moved it calls it
                    below = types.MethodType(current(type(instance), "forward"), instance)
                if below is not None:
                    own[attribute] = below
                installation.unbound[instance] = installation.bound.pop(instance)
                return True
        return False


def rebind(installation: Installation, instance: Any) -> bool:
    """See :meth:`Installation.rebind`."""
    with LOCK:
        kept, function = vars(instance).get(KEPT), current(type(instance), "forward")
        if type(kept) is not types.MethodType or kept.__self__ is not instance or kept.__func__ is function:
            return False
        if not is_ours(function) or not reaches(function, [kept.__func__]):
            return False
        bind(AsItsClass(installation, instance))
        return True


def _is_of(found: Any, instance: Any) -> bool:
    """Whether it is a forward of ours for the object; it may hold another one's."""
    return isinstance(found, Bound) and found.instance() is instance


def _adopt(instance: Any) -> None:
    """Make a shallow copy's forwards its own, and forget what a pickle has left of them."""
    own: MutableMapping[str, Any] = vars(instance)
    for attribute in FORWARDS:
        found = own.get(attribute)
        if isinstance(found, Bound) and found.instance() is not instance and type(found.instance()) is type(instance):
            own[attribute] = _moved(found, instance)
    left = own.get("forward")
    if type(left) is types.MethodType and left.__self__ is instance:
        if upstream(left.__func__) is upstream(current(type(instance), "forward")):
            del own["forward"]


def _moved(found: Any, instance: Any) -> Any:
    """A chain of our forwards for another object."""
    return found.moved_to(instance, _moved(found.shadowed, instance)) if isinstance(found, Bound) else found
