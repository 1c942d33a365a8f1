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
__version__ = "0.2.0"

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

    Its operations take operands of different floating dtypes from then on, whatever their shapes. Its parameters,
    buffers and configuration stay as they are.

    Args:
        model: a model with bitsandbytes 4- or 8-bit layers.

    Returns:
        The same model.

    Raises:
        TypeError: it is no module.
        ValueError: the model has no bitsandbytes layer.
        RuntimeError: torch's own, from a model that was not taken in.

    Source:
        With PEFT there is no need of it: ``BaseTuner.inject_adapter`` (peft/tuners/tuners_utils.py) and
        ``PeftModel.add_adapter`` (peft/peft_model.py) take a model in. What torch refuses is huggingface/peft#1515.

    Examples:
        >>> from bitsandbytes.nn import Linear4bit
        >>> classifier = torch.nn.Sequential(
        ...     Linear4bit(64, 64, compute_dtype=torch.bfloat16), torch.nn.Linear(64, 2, dtype=torch.bfloat16)
        ... ).to("cpu")
        >>> with torch.no_grad():
        ...     classifier(torch.randn(1, 4, 64))
        Traceback (most recent call last):
            ...
        RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16
        >>> with torch.no_grad():
        ...     logits = qlora_bf16_patch.guard(classifier)(torch.randn(1, 4, 64))
        >>> logits.shape, logits.dtype
        (torch.Size([1, 4, 2]), torch.float32)
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
        A ``Trace``: a context manager, and after its block what was seen.

    Raises:
        TypeError: it is no module.
        ValueError: the model has no bitsandbytes layer.

    Source:
        torch's forward hooks (torch/nn/modules/module.py) tell of dtypes, the patches of casts.

    Examples:
        >>> with qlora_bf16_patch.trace(model) as trace:
        ...     logits = model(**inputs).logits
        >>> logits.shape, logits.dtype
        (torch.Size([1, 4, 128]), torch.float32)
        >>> trace.spoken_mismatches()
        ['evaluation: base_model.model.lm_head: linear has its input cast from float32 to bfloat16 by peft.boundary,
        once in 1 module']
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
        TypeError: it is no module.
        ValueError: the model has no bitsandbytes layer, or a pattern or keyword matches nothing.

    Source:
        A compute dtype that was left at float32 is the default of ``bnb_4bit_compute_dtype``
        (transformers/utils/quantization_config.py); bitsandbytes warns of it in ``Linear4bit.set_compute_type``.

    Examples:
        >>> with qlora_bf16_patch.assert_dtypes(
        ...     model, {"*norm": torch.float32, "*proj": "nf4"}, compute=torch.bfloat16, adapters=torch.float32
        ... ), torch.autocast("cpu", torch.bfloat16):
        ...     logits = model(**inputs).logits
        >>> qlora_bf16_patch.assert_dtypes(model, {"lm_head": torch.float32})
        Traceback (most recent call last):
            ...
        qlora_bf16_patch.inspection.assertions.DtypeAssertionError: PeftModelForCausalLM has other dtypes than was
        asserted:
          base_model.model.lm_head (Linear): weight is bfloat16, not float32, as 'lm_head' asks
        Load the model with `dtype=torch.float32`, or cast the module after that, `module.to(torch.float32)`;
        prepare_model_for_kbit_training makes all that is not packed float32.
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
        A ``Report``: rows, findings with advice, a table by ``print``.

    Raises:
        TypeError: it is no module.
        ValueError: the model has no bitsandbytes layer.

    Source:
        What torch refuses is huggingface/peft#1515; what FSDP1 cannot flatten, ``FlatParamHandle``
        (torch/distributed/fsdp/_flat_param.py); what a GradScaler cannot unscale, torch/amp/grad_scaler.py.

    Examples:
        >>> report = qlora_bf16_patch.report(model)
        >>> for line in report.spoken_mismatches():
        ...     print(line)
        mismatch: outside of autocast, in evaluation and in generate(), torch refuses the mixture of dtypes; with the
        shim it is cast.
          base_model.model.lm_head (Linear): it is given float32 hidden states, and its weight is bfloat16
          Advice: keep `import qlora_bf16_patch`, or run evaluation and generate() under torch.autocast, as training.
    """
    from .inspection.report import report as _report

    return _report(model, [_registry.installation(row.name) for row in status()])


for _patch in _CATALOGUE:
    register(_patch)
for _point in _plugins:  # last, since a third party's module imports names from this one
    _registry.register_entry_point(_point)
