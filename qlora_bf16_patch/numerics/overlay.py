"""An object that is another one but for some attributes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

_Module = TypeVar("_Module")


def overlay(module: _Module, **attributes: Any) -> _Module:
    """A shallow copy of ``module`` with other ``attributes``.

    Upstream's forward is run on it where one attribute must be another for this call alone: nothing is written to the
    module, so no other thread sees it. Dynamo traces it (torch 2.13.0, ``fullgraph=True``).

    Args:
        module: any object with a ``__dict__``.
        attributes: what differs, by its name in the ``__dict__``.
    """
    # Not cls.__new__(cls): FSDP2's class builds an object of the class that it replaced (torch 2.13.0,
    # distributed/fsdp/_fully_shard/_fully_shard.py, FSDPModule.__new__).
    other: Any = object.__new__(type(module))
    if torch.compiler.is_compiling() and not _UPDATES:  # pragma: no cover: torch 2.10 and older
        for name in _names(module):
            other.__dict__[name] = module.__dict__[name]
        for name in attributes:
            other.__dict__[name] = attributes[name]
    else:
        other.__dict__.update(module.__dict__)
        other.__dict__.update(attributes)
    return other  # type: ignore[no-any-return]


# On torch 2.10 and older Dynamo traces no `__dict__.update`: it reads and writes single entries, and cannot list them.
_UPDATES = torch.__version__ >= "2.13"  # a TorchVersion


def _names(module: Any) -> tuple[str, ...]:  # pragma: no cover: torch 2.10 and older
    """The names in an object's ``__dict__``, as a constant of the code that is traced."""
    from torch._dynamo.comptime import comptime

    names: tuple[str, ...] = ()
    comptime(_list)
    return names


def _list(context: Any) -> None:  # pragma: no cover: torch 2.10 and older
    from torch._dynamo.variables import ConstantVariable, TupleVariable

    variables: Any = context._ComptimeContext__tx.symbolic_locals
    names = variables["module"].realize().value.__dict__
    variables["names"] = TupleVariable([ConstantVariable.create(name) for name in names])
