"""What a module holds: rows of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ..hosts.bitsandbytes import is_kbit, is_kbit_weight
from .dtypes import compute_of, short, weight_of


@dataclasses.dataclass(frozen=True)
class Held:
    """A module with parameters, its own or of those inside of it.

    Attributes:
        path: in the model; empty for the model itself.
        module: its class.
        weight: dtype of its weight; of a k-bit layer how it is packed, ``nf4``, ``fp4`` or ``int8``.
        storage: dtype that a packed weight is stored in (``bnb_4bit_quant_storage``).
        compute: dtype that a 4-bit layer is configured to compute in.
        parameters: dtypes of its own parameters but for the packed one, each once.
        trainable: dtypes of those that are trained, each once.

    Examples:
        >>> qlora_bf16_patch.report(model).held[-1]
        Held(path='base_model.model.lm_head', module='Linear', weight='bfloat16', storage=None, compute=None,
        parameters=('bfloat16',), trainable=())
        >>> [one.storage for one in qlora_bf16_patch.report(model).held if one.path.endswith("layers.0.mlp.up_proj")]
        ['uint8']
    """

    path: str
    module: str
    weight: str | None
    storage: str | None
    compute: str | None
    parameters: tuple[str, ...]
    trainable: tuple[str, ...]


def held_by(model: torch.nn.Module) -> Iterator[Held]:
    """A row for each module that has parameters; a list of modules, which never runs, has none."""
    for path, module in model.named_modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)) or not _has_parameters(module):
            continue
        own = [one for one in module._parameters.values() if one is not None]
        packed = [one for one in own if is_kbit_weight(one)]
        plain = [one for one in own if not is_kbit_weight(one)]
        yield Held(
            path,
            type(module).__name__,
            weight_of(module),
            _dtypes(packed)[0] if packed else None,
            compute_of(module),
            _dtypes(plain),
            _dtypes([one for one in own if one.requires_grad]),
        )


def _has_parameters(module: torch.nn.Module) -> bool:
    return is_kbit(module) or any(True for _ in module.parameters())


def _dtypes(values: list[torch.nn.Parameter]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(short(one.dtype) for one in values))
