"""What the patches of ``BaseTuner.inject_adapter`` share: they give a model's modules forwards of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..engine.installation import Installation
from ..hosts.bitsandbytes import is_kbit_model
from ..hosts.peft import is_kbit_tuner, is_prompt_learning
from ..numerics import training

TakeIn = Callable[[torch.nn.Module, Installation], Any]


def after_injection(original: Any, installation: Installation, take_in: TakeIn) -> Callable[..., Any]:
    """A wrapper of ``BaseTuner.inject_adapter``, and of ``PeftModel.add_adapter`` for the methods that inject none.

    Args:
        original: upstream's.
        installation: the patch's.
        take_in: called with the k-bit model that has the adapter now, also while the patch is switched off, so that it
            can be switched on.
    """
    for known in training.models():  # a patch that is switched on for the first time finds the models there are
        safely(take_in, known, installation)

    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if original.__name__ == "inject_adapter":
            safely(take_in, args[0] if args else kwargs["model"], installation)
        elif is_prompt_learning(self):
            safely(take_in, self, installation)
        return result

    return patched


def safely(take_in: TakeIn, model: torch.nn.Module, installation: Installation) -> None:
    """Take in a k-bit model, and leave another alone; nothing of ours may break ``get_peft_model``."""
    try:
        if not is_kbit_model(model):
            return
        training.share_record(model, kbit_tuners(model, installation))
        take_in(model, installation)
    except Exception as error:
        left_alone(installation, type(model).__name__, error)


def kbit_tuners(model: torch.nn.Module, installation: Installation) -> Iterator[torch.nn.Module]:
    """The tuner layers around k-bit layers; one that cannot say what it is around is left alone."""
    for path, module in model.named_modules():
        try:
            wanted = is_kbit_tuner(module)
        except Exception as error:
            left_alone(installation, path, error)
            continue
        if wanted:
            yield module


def left_alone(installation: Installation, path: str, error: Exception) -> None:
    """Tell of a module that could not be looked at."""
    installation.note(
        f"left alone: {path}", f"{path} could not be looked at, and is left as it is: {type(error).__name__}: {error}"
    )
