"""The forwards of a watched model's modules."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..engine.installation import Bound, Installation
from ..numerics import training
from ..numerics.autocast import NOTHING
from ..numerics.dtypes import autocast_is_on, floating
from ..numerics.mode import ERRORS, is_on, off
from ..numerics.places import is_forward
from .kinds import Kind, first_tensor
from .running import here

if TYPE_CHECKING:
    from .watch import Watch


class Watched(Bound):
    """The forward of a module: it runs as it is, or under the mode in those kinds of call that were found to need it.

    Args:
        installation: of the patch.
        module: a part of the model.
        watch: over the patch's models.
        path: of the module in the model; empty for the model.
        is_entry: whether a program calls the module, so that a watched call begins here.

    Attributes:
        path: of the module in the model; empty for the model.
        kinds: the kinds of call in which operations of the module's own statements are cast.
        answered: those in which a read of a packed weight's dtype is answered with the dtype of the unpacked weight.
    """

    def __init__(
        self, installation: Installation, module: torch.nn.Module, watch: Watch, path: str, is_entry: bool = False
    ) -> None:
        super().__init__(installation, module)
        self.watch, self.path, self.is_entry = watch, path, is_entry
        self.kinds: frozenset[Kind | None] = frozenset()
        self.answered: frozenset[Kind | None] = frozenset()

    @is_forward
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.compiled(*args, **kwargs)
        if self.is_entry and here.kind is None and self.installation.on:
            return self.watch.call(self, args, kwargs)
        below, module = self.below, self.instance()
        try:
            if self.kinds:
                return self.run(*args, **kwargs)
            return type(module).forward(module, *args, **kwargs) if below is None else below(*args, **kwargs)
        except ERRORS as error:
            if not self.watch.may_run_again(self, error, args, kwargs):
                raise
            traceback.clear_frames(error.__traceback__)  # they keep what the first half has computed
            # Not a local variable: a look at this frame's would keep the error, and what it holds.
            here.failed = error
        return self.watch.run_again(self, args, kwargs)

    def compiled(self, /, *args: Any, **kwargs: Any) -> Any:
        """The call while Dynamo traces it."""
        if self.is_entry and self.installation.on:
            see_training(self.instance(), args, kwargs)
        with self.watch.while_compiling() if self.installation.on else NOTHING:
            return self.original(*args, **kwargs)

    def run(self, /, *args: Any, **kwargs: Any) -> Any:
        """The call where operations of the module were cast: under the mode, in those kinds of call."""
        # A call outside of a watched one (a checkpoint's in the backward) is one of them.
        casts = (here.kind is None or here.kind in self.kinds) and self.installation.on
        with self.watch.mode(self) if casts else NOTHING:
            return self.original(*args, **kwargs)


class AsksForModes(Watched):
    """A module whose code asks whether a function mode is on, as torch's fused encoder layer and attention do.

    They take another path then, with other numbers. Where their dtypes agree they find no mode of ours; where they
    differ they find it in each call of the kind.
    """

    @is_forward
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not is_on():
            return super().__call__(*args, **kwargs)
        module = self.instance()
        held = (*args, *kwargs.values(), *module.parameters(), *module.buffers())
        if len({tensor.dtype for tensor in floating(held)}) > 1:
            self.kinds |= {here.kind}
            return super().__call__(*args, **kwargs)
        with off():
            return super().__call__(*args, **kwargs)


def parts_of(module: torch.nn.Module) -> Iterator[int]:
    """What stands in a model and in its stacks of layers: where a part was replaced, what is known counts no more."""
    for part in module._modules.values():
        yield id(part)
        forward = None if part is None else part.__dict__.get("forward")
        if isinstance(forward, Watched) and forward.is_entry:
            yield from parts_of(part)  # type: ignore[arg-type]


def see_training(root: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record how a model trains: under autocast, or outside of it."""
    tensor = first_tensor(args, kwargs)
    devices = ("cpu", "cuda") if tensor is None else (tensor.device.type,)
    training.see(root, any(map(autocast_is_on, devices)))
