"""QLoRA in bf16 without dtype mismatches: ``import qlora_bf16_patch`` at the top of the script.

The import loads no torch; each patch is installed when its library arrives.
"""

from __future__ import annotations

import logging as _logging
import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from .engine.environment import Environment as _Environment
from .engine.environment import EnvironmentVariableError, UnknownPatchError
from .engine.environment import is_killed as _is_killed
from .engine.patch import Patch, Status, Unsupported
from .engine.plugins import find as _find
from .engine.registry import Registry as _Registry
from .patches import CATALOGUE as _CATALOGUE
from .patches import MOVED as _MOVED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from .inspection import Report, Trace
    from .inspection.assertions import Assertion
    from .inspection.expected import Wanted

__all__ = [
    "EnvironmentVariableError",
    "Patch",
    "Status",
    "UnknownPatchError",
    "Unsupported",
    "assert_dtypes",
    "disable",
    "disabled",
    "enable",
    "enabled",
    "guard",
    "register",
    "report",
    "reset",
    "status",
    "strict",
    "trace",
    "uninstall",
]
__version__ = "0.1.0"

# The kill switch is read before anything that could raise.
_plugins = () if _is_killed(_os.environ) else _find("qlora_bf16_patch.patches")
_known = [*(patch.name for patch in _CATALOGUE), *(point.name for point in _plugins)]
_environment = _Environment(_os.environ, _known, _MOVED)

_logger = _logging.getLogger(__name__)
_logger.addHandler(_logging.NullHandler())
if _environment.log_level is not None:
    # Who sets the variable wants to read the log, also in a script that never configures logging.
    _handler = _logging.StreamHandler()
    _handler.setFormatter(_logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    _logger.addHandler(_handler)
    _logger.setLevel(_environment.log_level)
    _logger.propagate = False

_registry = _Registry(_environment)
enable, disable = _registry.enable, _registry.disable
enabled, disabled, strict = _registry.enabled, _registry.disabled, _registry.strict
register, status, reset, uninstall = _registry.register, _registry.status, _registry.reset, _registry.uninstall


def guard(model: torch.nn.Module) -> torch.nn.Module:
    """Take in a model that was built before the import, or without PEFT, or a module of your own around a PEFT model.

    Args:
        model: a model with bitsandbytes 4- or 8-bit layers.

    Returns:
        The same model.

    Raises:
        TypeError: it is no module.
        ValueError: the model has no bitsandbytes layer.

    Example:
        >>> import qlora_bf16_patch
        >>> from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        >>> model = AutoModelForCausalLM.from_pretrained(
        ...     "facebook/opt-125m", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        ... )  # doctest: +SKIP
        >>> model = qlora_bf16_patch.guard(model)  # doctest: +SKIP
    """
    if _environment.killed:
        _logger.info("guard does nothing: QLORA_BF16_PATCH has switched everything off")
        return model

    # Brings the patches of injection in place, where a script without PEFT did not.
    _import_module(next(patch.module for patch in _CATALOGUE if patch.name == "peft.boundary"))
    from .patches.guarding import guard as _guard

    _guard(model, _registry.installation)
    return model


def trace(model: torch.nn.Module) -> Trace:
    """Record which dtypes every module of ``model`` meets inside of a ``with`` block, and what is cast there.

    Args:
        model: one with bitsandbytes 4- or 8-bit layers.

    Returns:
        A context manager: see :class:`qlora_bf16_patch.inspection.trace.Trace`.

    Raises:
        ValueError: the model has no bitsandbytes layer.

    Example:
        >>> with qlora_bf16_patch.trace(model) as trace:  # doctest: +SKIP
        ...     trainer.train()
        >>> print(trace)  # doctest: +SKIP
    """
    from .inspection import Trace

    return Trace(model)


def assert_dtypes(
    model: torch.nn.Module,
    dtypes: Mapping[str, Wanted] | None = None,
    *,
    compute: Wanted | None = None,
    adapters: Wanted | None = None,
    allow_casts: bool = False,
) -> Assertion:
    """Assert which dtypes ``model`` has, and in a ``with`` block that none mismatch while it runs.

    A dtype is one of torch's, its name, or ``"nf4"``, ``"fp4"``, ``"int8"`` where a linear layer is to be packed so;
    a tuple means either.

    Args:
        model: one with bitsandbytes 4- or 8-bit layers; it may be on the meta device.
        dtypes: of floating parameters, by a glob of the path or of its end, or of the class' name. Where several match
            a parameter the last counts.
        compute: that 4-bit layers compute in. By default one that was left at float32 fails, where its weight was
            quantized from a half precision.
        adapters: of all parameters of PEFT's adapters.
        allow_casts: whether in the block the shim may cast what torch would have refused.

    Returns:
        A context manager. Leaving its block raises ``DtypeAssertionError`` too, with path, operation, dtypes and
        advice, if an operand was cast, or torch refused one; ``ValueError`` if no module of the model ran in it.

    Raises:
        DtypeAssertionError: dtypes are others; it lists all of them.
        ValueError: the model has no bitsandbytes layer, or a pattern or keyword matches nothing.

    Example:
        >>> qlora_bf16_patch.assert_dtypes(
        ...     model, {"*norm*": torch.float32, "lm_head": torch.bfloat16}, compute=torch.bfloat16
        ... )  # doctest: +SKIP
        >>> with qlora_bf16_patch.assert_dtypes(model):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    from .inspection.assertions import Assertion, check

    __tracebackhide__ = True
    check(model, dtypes, compute, adapters)
    return Assertion(model, allow_casts)


def report(model: torch.nn.Module) -> Report:
    """Say which dtypes ``model`` holds and what to expect of them, without running or changing it.

    Args:
        model: one with bitsandbytes 4- or 8-bit layers.

    Returns:
        What :class:`qlora_bf16_patch.inspection.report.Report` is: rows, findings with advice, a table by ``print``.

    Raises:
        ValueError: the model has no bitsandbytes layer.
        TypeError: it is no module.

    Example:
        >>> print(qlora_bf16_patch.report(model))  # doctest: +SKIP
    """
    from .inspection.report import report as _report

    return _report(model, [_registry.installation(row.name) for row in status()])


for _patch in _CATALOGUE:
    register(_patch)
_registry.register_entry_points(_plugins)  # last, since a third party's module imports names from this one
