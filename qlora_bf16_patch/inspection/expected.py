"""Which dtypes a model's parameters and k-bit layers are to have, by path, class or kind, and which have others."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from ..hosts.bitsandbytes import is_4bit, is_kbit_weight, left_at_float32
from .dtypes import compute_of, short, weight_of

Wanted = torch.dtype | str | tuple[torch.dtype | str, ...]
PACKED = ("nf4", "fp4", "int8")

_CAST = (
    "Load the model with `dtype={}`, or cast the module after that, `module.to({})`; prepare_model_for_kbit_training "
    "makes all that is not packed float32."
)
_COMPUTE = "Set `bnb_4bit_compute_dtype={}` in BitsAndBytesConfig."
_MEANT = " Where float32 is meant, say `compute=torch.float32`."
_ADAPTERS = (
    "PEFT makes adapters float32, or with `get_peft_model(..., autocast_adapter_dtype=False)` of their base layer's "
    "dtype; a script or trainer that casts them does it after that."
)
_QUANTIZED = "Load the model with a BitsAndBytesConfig, and look at its `llm_int8_skip_modules`."
_PACKED = "Set `{}` in BitsAndBytesConfig."
_PACKED_BY = {
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4"',
    "fp4": 'load_in_4bit=True, bnb_4bit_quant_type="fp4"',
    "int8": "load_in_8bit=True",
}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A dtype that is not the one that was asserted.

    Attributes:
        path: the module's.
        module: its class.
        what: the parameter's name, or ``compute dtype``.
        found: its dtype, or how it is packed.
        wanted: those that would have done.
        said: the pattern or the keyword that asked for it.
        advice: what to do.

    Examples:
        >>> from qlora_bf16_patch.inspection import DtypeAssertionError
        >>> try:
        ...     qlora_bf16_patch.assert_dtypes(model, compute=torch.float16)
        ... except DtypeAssertionError as error:
        ...     wrong = error.failures[0]
        >>> wrong.path, wrong.found, wrong.wanted, wrong.said
        ('base_model.model.model.layers.0.self_attn.q_proj.base_layer', 'bfloat16', ('float16',), 'compute')
        >>> wrong.advice
        'Set `bnb_4bit_compute_dtype=torch.float16` in BitsAndBytesConfig.'
    """

    path: str
    module: str
    what: str
    found: str
    wanted: tuple[str, ...]
    said: str
    advice: str

    def __str__(self) -> str:
        name = f"{self.path} ({self.module})" if self.path else self.module
        return f"{name}: {self.what} is {self.found}, not {' or '.join(self.wanted)}, as {self.said} asks"


class Pattern(NamedTuple):
    """A glob of a module's or parameter's path, or of its end, or of a class' name."""

    said: str
    matches: re.Pattern[str]
    wanted: tuple[str, ...]

    @property
    def of_packing(self) -> bool:
        """Whether it asks how a linear layer's weight is packed, not which dtype a parameter has."""
        return not set(self.wanted).isdisjoint(PACKED)


class Held(NamedTuple):
    """A parameter where it stands."""

    path: str
    module: torch.nn.Module
    name: str
    value: torch.Tensor
    labels: list[str]  # its name, the paths around it and their classes

    def wrong(self, found: str, wanted: tuple[str, ...], said: str, advice: str) -> Wrong:
        return Wrong(self.path, type(self.module).__name__, self.name, found, wanted, said, advice)


def words(wanted: Wanted) -> tuple[str, ...]:
    """Dtypes as a trace writes them.

    Raises:
        ValueError: one is no floating dtype, and none in which bitsandbytes packs weights.
    """
    found = []
    for one in wanted if isinstance(wanted, tuple) else (wanted,):
        dtype = getattr(torch, one.removeprefix("torch."), None) if isinstance(one, str) else one
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            found.append(short(dtype))
        elif one in PACKED:
            found.append(str(one))
        else:
            raise ValueError(f"{one!r} is neither a floating dtype nor one of {', '.join(PACKED)}.")
    if not found:
        raise ValueError("an empty tuple of dtypes asserts nothing.")
    return tuple(found)


def computing(named: Mapping[str, torch.nn.Module], compute: Wanted | None) -> list[Wrong]:
    """The 4-bit layers that compute in another dtype; by default in float32 where a half precision was quantized."""
    layers = {path: layer for path, layer in named.items() if is_4bit(layer)}
    if compute is not None and not layers:
        raise ValueError("compute: there is no 4-bit layer, and an 8-bit one has no compute dtype to configure.")
    wanted = words(compute) if compute is not None else ("bfloat16", "float16")
    said = "compute" if compute is not None else "the default for weights that were quantized from a half precision"
    advice = _said(_COMPUTE, wanted) + (_MEANT if compute is None else "")
    return [
        Wrong(path, type(layer).__name__, "compute dtype", of or "not configured", wanted, said, advice)
        for path, layer in layers.items()
        if (of := compute_of(layer)) not in wanted and (compute is not None or left_at_float32(layer))
    ]


def adapting(named: Mapping[str, torch.nn.Module], adapters: Wanted) -> list[Wrong]:
    """The parameters of adapters that have another dtype."""
    theirs, wanted = _adapters(named[""]), words(adapters)
    if not theirs:
        raise ValueError("adapters: the model has none. Assert it after get_peft_model or PeftModel.from_pretrained.")
    return [
        held.wrong(short(held.value.dtype), wanted, "adapters", _ADAPTERS)
        for held in _held(named)
        if id(held.value) in theirs and short(held.value.dtype) not in wanted
    ]


def matching(named: Mapping[str, torch.nn.Module], dtypes: Mapping[str, Wanted]) -> list[Wrong]:
    """What patterns match that has another dtype; of several of a kind that match a parameter, the last counts."""
    if not dtypes:
        return []
    patterns = [
        Pattern(said, re.compile(r"(?:.*\.)?" + fnmatch.translate(said)), words(wanted))
        for said, wanted in dtypes.items()
    ]
    theirs, used, found = _adapters(named[""]), set(), []
    for held in _held(named):
        is_linear = isinstance(held.module, torch.nn.Linear) and held.name == "weight" and id(held.value) not in theirs
        matched = [pattern for pattern in patterns if any(map(pattern.matches.match, held.labels))]
        packing = [pattern for pattern in matched if pattern.of_packing and is_linear]
        plain = [pattern for pattern in matched if not pattern.of_packing and not is_kbit_weight(held.value)]
        used |= {pattern.said for pattern in packing + plain}
        for said, _, wanted in packing[-1:]:
            if (of := weight_of(held.module) or "") not in wanted:
                advice = _PACKED.format(_packing(wanted)) if of in PACKED else _QUANTIZED
                found.append(held.wrong(of, wanted, repr(said), advice))
        for said, _, wanted in plain[-1:]:
            if (of := short(held.value.dtype)) not in wanted:
                found.append(held.wrong(of, wanted, repr(said), _said(_CAST, wanted)))
    for pattern in patterns:
        if pattern.said not in used:
            raise ValueError(_matches_nothing(pattern, named))
    return found


def _matches_nothing(pattern: Pattern, named: Mapping[str, torch.nn.Module]) -> str:
    what = "the weight of a linear layer" if pattern.of_packing else "a floating parameter"
    parts = dict.fromkeys(part for path in named for part in path.split(".") if part and not part.isdecimal())
    return (
        f"{pattern.said!r} matches {what} nowhere, so it asserts nothing. It is a glob of a path or of its end, or "
        f"of a class' name; packed weights are asked for by {', '.join(PACKED)}. Paths are made of: {', '.join(parts)}."
    )


def _held(named: Mapping[str, torch.nn.Module]) -> Iterator[Held]:
    """The floating parameters and packed weights, tied ones at each of their places."""
    for path, module in named.items():
        parts = path.split(".") if path else []
        around = [".".join(parts[:length]) for length in range(len(parts) + 1)]
        classes = [type(named[one]).__name__ for one in around]
        for name, value in module._parameters.items():
            if value is not None and (value.is_floating_point() or is_kbit_weight(value)):
                yield Held(path, module, name, value, [f"{path}.{name}" if path else name, *around[1:], *classes])


def _adapters(model: torch.nn.Module) -> set[int]:
    """The ids of all adapters' parameters; without an import of PEFT, where the model cannot have one."""
    if "peft" not in sys.modules:
        return set()
    from ..hosts.peft import adapter_parameters

    return set(map(id, adapter_parameters(model)))


def _packing(wanted: tuple[str, ...]) -> str:
    return next(_PACKED_BY[one] for one in wanted if one in PACKED)


def _said(advice: str, wanted: tuple[str, ...]) -> str:
    return advice.replace("{}", f"torch.{wanted[0]}" if wanted else "...")
