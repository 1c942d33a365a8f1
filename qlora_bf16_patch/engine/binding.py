"""Our callables as the forward of single objects, so that the other objects of their class pay nothing.

A :class:`Bound` is an instance attribute and refers to its object weakly: an object that nobody uses is freed at once.
``copy.deepcopy`` binds the copy; a pickle (dill's and cloudpickle's, too) holds the name of the class' own forward, so
it loads without this package, and the loaded object is not bound.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from .wrapping import LOCK, current, is_ours, reaches, upstream

if TYPE_CHECKING:
    from .installation import Installation

# accelerate keeps the method that it found in `_old_forward`, and calls it (hooks.py, add_hook_to_module).
KEPT = "_old_forward"
FORWARDS = (KEPT, "forward")


class Bound:
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
    # Not a function or a method: cloudpickle would save it by value, and accelerate would call its `__func__`.
    __class__ = property(lambda self: types.FrameType)
    f_code = property(lambda self: self.__wrapped__.__code__)

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
        cls: Any = type(self.instance())
        own = current(cls, "forward")
        takes_no_object = isinstance(own, (staticmethod, classmethod)) or not hasattr(type(own), "__get__")
        self.shadowed = shadowed
        self.below = cls.forward if shadowed is None and takes_no_object else shadowed

    @property
    def __wrapped__(self) -> Any:
        """What this one stands for: ``inspect.signature`` and torch.jit.script look here."""
        instance = self.instance()
        own = current(type(instance), "forward")
        return own.__get__(instance, type(instance)) if self.below is None else self.below

    def __getattr__(self, name: str) -> Any:
        # Not `__func__`: accelerate would call the class' own function instead of this (prepare_model).
        if name in ("__func__", "__wrapped__") or "instance" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        instance = copy.deepcopy(self.instance(), memo)  # the one that is being made
        return self.moved_to(instance, copy.deepcopy(self.shadowed, memo))

    def moved_to(self, instance: Any, shadowed: Any) -> Bound:
        """The same for another object."""
        other: Bound = object.__new__(type(self))
        other.__dict__.update(self.__dict__, instance=weakref.ref(instance))
        other.put_over(shadowed)
        with LOCK:
            self.installation.bound[instance] = other
        return other

    def __reduce__(self) -> Any:
        return getattr, (self.instance(), "forward")


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
        earlier = installation.bound.get(instance)
        installation.unbound.pop(instance, None)
        for holder, name, found in _places(instance):
            if found.installation.name == installation.name:
                if found.installation is not installation or type(found) is not type(bound) or type(bound) is Function:
                    bound.put_over(found.shadowed)
                    _put(holder, name, bound)
                    installation.bound[instance] = bound
                return
        if earlier is not None and not again:  # beneath another party's wrapper
            return
        attribute = next((name for name in FORWARDS if name in vars(instance)), "forward")
        bound.put_over(vars(instance).get(attribute))
        installation.bound[instance] = bound
        vars(instance)[attribute] = bound


def unbind(installation: Installation, instance: Any) -> bool:
    """Take an installation's forward out again, unless another party's wrapper stands over it."""
    with LOCK:
        for holder, name, found in _places(instance):
            if found.installation is installation:
                below = found.shadowed
                if below is None and name == KEPT:  # whoever moved it calls it
                    below = types.MethodType(current(type(instance), "forward"), instance)
                _put(holder, name, below)
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


def _places(instance: Any) -> Iterator[tuple[Any, str, Bound]]:
    """Where this object holds our forwards, the topmost first: in its ``__dict__``, or beneath another one of ours."""
    for attribute in FORWARDS:
        holder, name = vars(instance), attribute
        while isinstance(found := _held(holder, name), Bound) and found.instance() is instance:
            yield holder, name, found
            holder, name = found, "shadowed"


def _held(holder: Any, name: str) -> Any:
    return holder.shadowed if isinstance(holder, Bound) else holder.get(name)


def _put(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, Bound):
        holder.put_over(value)
    elif value is None:
        holder.pop(name, None)
    else:
        holder[name] = value


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
