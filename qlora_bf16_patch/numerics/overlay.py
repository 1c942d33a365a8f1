"""An object that is another one but for some attributes."""

from __future__ import annotations

from typing import Any, TypeVar

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
    other.__dict__.update(module.__dict__)
    other.__dict__.update(attributes)
    return other  # type: ignore[no-any-return]
