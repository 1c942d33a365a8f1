"""What ``peft.boundary`` and ``peft.tuners`` share: they mark a model's modules once PEFT has injected an adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..installation import Factory, Installation

if TYPE_CHECKING:
    import torch


def after_injection(mark: Callable[[torch.nn.Module, Installation], Any]) -> Callable[[], Factory]:
    """A patch's ``load``, for the target ``BaseTuner.inject_adapter``.

    Args:
        mark: called with the model that has the adapter now, also while the patch is switched off, so that it can be
            switched on.
    """

    def factory(original: Any, installation: Installation) -> Callable[..., Any]:
        @functools.wraps(original)
        def inject_adapter(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, model, *args, **kwargs)
            mark(model, installation)
            return result

        return inject_adapter

    return lambda: factory
