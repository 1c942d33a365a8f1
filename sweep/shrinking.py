"""A small configuration from a model's own configuration class."""

from __future__ import annotations

import re
from typing import Any

from .options import OPTIONS
from .sizes import LISTS, MILD, NEEDED, SIZES, VOCABULARY

_COUNTED = ("hidden_layers", "attention_heads")


def shrunk(
    config_class: Any, wanted: dict[str, Any], options: dict[str, Any], *, given: Any = None, mild: bool = False
) -> Any:
    """A small configuration: sizes by `SIZES`, then ``wanted`` where it has the attribute, then ``options``.

    Args:
        config_class: of transformers, or another's that answers `sub_configs`, `attribute_map` and `to_dict`.
        wanted: values by attribute, for configurations that have it.
        options: values by attribute, whether it has it or not; those of a part by the part's name.
        given: the instance that a configuration holds of this class; what it has of its own is kept.
        mild: widths stay as they are.
    """
    options = OPTIONS.get(config_class.__name__, {}) | options
    plain = config_class()
    default = plain if given is None else given
    nested = {name: part for name in default.sub_configs if (part := getattr(default, name, None)) is not None}
    small: dict[str, Any] = {
        name: shrunk(type(part), {}, options.get(name, {}), given=part, mild=mild) for name, part in nested.items()
    }
    sizes = {name: value for name, value in default.to_dict().items() if name not in nested}
    if given is not None:
        usual = plain.to_dict()
        small |= {name: value for name, value in sizes.items() if name not in usual or value != usual[name]}
    layers, heads = (sizes.get(default.attribute_map.get(f"num_{name}", f"num_{name}")) for name in _COUNTED)
    for name, value in sizes.items():
        if isinstance(value, (list, tuple)) and value:
            small |= _shorter(name, value, layers, mild)
        elif isinstance(value, int) and not isinstance(value, bool):
            # As many key and value heads as attention heads stay as many.
            rule = "num_attention_heads" if (name, value) == ("num_key_value_heads", heads) else name
            if (smaller := _smaller(rule, value, MILD if mild else SIZES)) != value:
                small[name] = smaller
        elif name in wanted or (value is None and name in NEEDED):
            small[name] = wanted[name] if name in wanted else NEEDED[name]
    if given is not None:
        small |= _stages(small, default.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    return config_class(**{**small, **{name: value for name, value in options.items() if name not in nested}})


def _stages(small: dict[str, Any], layers: str) -> dict[str, Any]:
    """A backbone's first layers, as many as what stands on it reads."""
    read = [name for name in small.get("out_features") or () if name != "stem"]
    small.pop("out_indices", None)
    small.pop("stage_names", None)
    if not read or "depths" in small:
        return {}
    stages = {"out_features": [f"stage{index + 1}" for index in range(len(read))]}
    return stages | {layers: len(read)} if layers in small else stages


def _shorter(name: str, values: Any, layers: Any, mild: bool) -> dict[str, Any]:
    """One layer of each of two kinds, or smaller numbers."""
    sizes = [size for pattern, size in (LISTS[:1] if mild else LISTS) if re.fullmatch(pattern, name)]
    if sizes and all(type(value) is int for value in values):
        return {name: type(values)(min(value, *sizes) for value in values)}
    if isinstance(values, list) and len(values) == layers and "out_features" != name != "hidden_sizes":
        return {name: (list({str(value): value for value in values}.values()) * 2)[:2]}
    return {}


def _smaller(name: str, value: int, rules: list[tuple[str, int]]) -> int:
    if re.fullmatch(r".*token_(id|index)", name):
        return value if value < VOCABULARY else 200 + value % 100
    for pattern, size in rules:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value
