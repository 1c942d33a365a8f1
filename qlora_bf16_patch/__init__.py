"""QLoRA in bf16 without dtype mismatches: ``import qlora_bf16_patch`` at the top of the script.

The import loads no torch; each patch is installed when its library arrives.
"""

from __future__ import annotations

import logging as _logging
import os as _os
from importlib.metadata import entry_points as _entry_points
from typing import TYPE_CHECKING

from .patches import CATALOGUE as _CATALOGUE
from .registry import Patch, Registry, Status
from .toggles import EnvironmentVariableError, UnknownPatchError
from .toggles import Toggles as _Toggles

if TYPE_CHECKING:
    import torch

__all__ = [
    "EnvironmentVariableError",
    "Patch",
    "Status",
    "UnknownPatchError",
    "disable",
    "disabled",
    "enable",
    "enabled",
    "guard",
    "register",
    "status",
    "uninstall",
]
__version__ = "0.1.0"

_plugins = tuple(_entry_points(group="qlora_bf16_patch.patches"))
_toggles = _Toggles(_os.environ, [patch.name for patch in _CATALOGUE] + [plugin.name for plugin in _plugins])

_logger = _logging.getLogger(__name__)
_logger.addHandler(_logging.NullHandler())
if _toggles.log_level is not None:
    # Who sets the variable wants to read the log, also in a script that never configures logging.
    _handler = _logging.StreamHandler()
    _handler.setFormatter(_logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    _logger.addHandler(_handler)
    _logger.setLevel(_toggles.log_level)
    _logger.propagate = False

_registry = Registry(_toggles)
enable, disable = _registry.enable, _registry.disable
enabled, disabled = _registry.enabled, _registry.disabled
register, status, uninstall = _registry.register, _registry.status, _registry.uninstall


def guard(model: torch.nn.Module) -> torch.nn.Module:
    """Bring a model under ``peft.boundary`` that was built before the import, or without PEFT.

    Args:
        model: a model with bitsandbytes 4- or 8-bit layers.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no bitsandbytes layer.
    """
    if _toggles.killed:
        _logger.info("guard does nothing: QLORA_BF16_PATCH has switched everything off")
        return model

    import peft.tuners.tuners_utils  # noqa: F401  # brings the patch in place, where a script without PEFT did not

    from .patches import boundary, tuners

    boundary.rebind_hooked(model)
    tuners.mark(model, _registry.installation("peft.tuners"))
    if not boundary.mark(model, _registry.installation("peft.boundary")):
        raise ValueError(f"{type(model).__name__} has no bitsandbytes 4- or 8-bit layer: there is nothing to guard.")
    return model


for _patch in _CATALOGUE:
    register(_patch)
if not _toggles.killed:
    for _plugin in _plugins:  # last, since a third party's module imports names from this one
        _registry.register_entry_point(_plugin)
