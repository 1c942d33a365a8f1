"""Lets older releases run what the tests ask of the pinned ones, by other names; nothing else is changed.

``python -m tests.versions.older script.py ...`` runs a script so, and ``pytest -p tests.versions.older`` tests. Each
function waits for its library, so that the order of imports stays the script's own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import wrapt
from packaging.version import Version

from . import reference


def before(distribution: str, release: str) -> bool:
    return Version(version(distribution)) < Version(release)


if before("transformers", "4.56"):

    @wrapt.when_imported("transformers.modeling_utils")
    def _dtype(module: Any) -> None:
        """`from_pretrained` called its argument torch_dtype."""
        original = module.PreTrainedModel.from_pretrained.__func__
        module.PreTrainedModel.from_pretrained = classmethod(_renamed(original, "dtype", "torch_dtype"))
        auto = sys.modules.get("transformers.models.auto.auto_factory")
        if auto is not None:
            _auto(auto)

    @wrapt.when_imported("transformers.models.auto.auto_factory")
    def _auto(module: Any) -> None:
        original = module._BaseAutoModelClass.from_pretrained.__func__
        if not hasattr(original, "__wrapped__"):
            module._BaseAutoModelClass.from_pretrained = classmethod(_renamed(original, "dtype", "torch_dtype"))


def _renamed(function: Callable[..., Any], name: str, older: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if name in kwargs:
            kwargs[older] = kwargs.pop(name)
        return function(*args, **kwargs)

    return renamed


if before("transformers", "4.56"):

    @wrapt.when_imported("transformers.quantizers.quantizer_bnb_4bit")
    def _on_a_cpu(module: Any) -> None:
        """It wants a GPU, or Intel's extension of torch, though bitsandbytes computes on any CPU from 0.46 on."""
        module.Bnb4BitHfQuantizer.validate_environment = lambda self, *args, **kwargs: None

    @wrapt.when_imported("transformers.utils.import_utils")
    def _is_available(module: Any) -> None:
        """Its answer is no without a GPU before transformers 4.46."""
        module.is_bitsandbytes_available = lambda *args, **kwargs: True


@wrapt.when_imported("transformers.quantizers.base")
def _kept(module: Any) -> None:
    """The sweep's probing.py imports what stood beside bitsandbytes' integration before transformers 5."""
    if not hasattr(module, "get_keys_to_not_convert"):

        def get_keys_to_not_convert(model: Any) -> Any:
            bitsandbytes: Any = importlib.import_module("transformers.integrations.bitsandbytes")
            return bitsandbytes.get_keys_to_not_convert(model)

        module.get_keys_to_not_convert = get_keys_to_not_convert


@wrapt.when_imported("transformers.configuration_utils")
def _parts(module: Any) -> None:
    """The sweep's shrinking.py asks a configuration for its parts: transformers 4.46 is the first that names them."""
    config = getattr(module, "PreTrainedConfig", None) or module.PretrainedConfig
    if not hasattr(config, "sub_configs"):
        config.sub_configs = {}


if before("accelerate", "1"):

    @wrapt.when_imported("accelerate.accelerator")
    def _trains_on_a_cpu(module: Any) -> None:
        """It takes a quantized model on a CPU for one that is offloaded there."""
        original = module.Accelerator.prepare_model

        def prepare_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            for part in model.modules():
                if "hf_device_map" in vars(part):
                    part.hf_device_map = {}
            return original(self, model, *args, **kwargs)

        module.Accelerator.prepare_model = prepare_model


if before("transformers", "5"):

    @wrapt.when_imported("sweep.shrinking")
    def _top_k(module: Any) -> None:
        """A configuration held generate()'s options, too: a smaller one is no default, and can't be saved."""
        original = module._smaller
        module._smaller = lambda name, value, rules: value if name == "top_k" else original(name, value, rules)


@wrapt.when_imported("peft.mapping")
def _in_their_own_dtype(module: Any) -> None:
    kinds: Any = importlib.import_module("peft.utils.peft_types").PeftType
    for name in ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING"):
        if table := vars(module).get(name):  # by strings, once
            setattr(module, name, {kinds(kind): value for kind, value in table.items() if kind in [*kinds]})
    if hasattr(module, "get_peft_model"):  # it moved, when it had the argument already
        module.get_peft_model = _without("autocast_adapter_dtype", module.get_peft_model)


@wrapt.when_imported("peft.peft_model")
def _added_in_their_own_dtype(module: Any) -> None:
    """Before 0.19 it had no such argument; toys/methods.py sets the dtypes anew."""
    module.PeftModel.add_adapter = _without("autocast_adapter_dtype", module.PeftModel.add_adapter)


@wrapt.when_imported("peft.tuners.lora.config")
def _nothing_excluded(module: Any) -> None:
    """The sweep excludes modules of a few architectures; before 0.14 none could be."""
    module.LoraConfig.__init__ = _without("exclude_modules", module.LoraConfig.__init__)


def _without(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or one that drops an argument that it does not know."""
    if name in inspect.signature(function).parameters:
        return function

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(name, None)
        return function(*args, **kwargs)

    return called


@wrapt.when_imported("peft.utils.peft_types")
def _methods(module: Any) -> None:
    """toys/methods.py names options of methods that older releases do not have; no test asks for those methods."""
    for name in ("C3A", "OFT", "VBLORA", "VERA"):
        if not hasattr(module.PeftType, name):
            setattr(module.PeftType, name, name)


if before("bitsandbytes", "0.46"):
    reference.put_in_place()


def main() -> None:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
