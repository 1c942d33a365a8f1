"""Toys of diffusers' transformers and UNets, from the defaults of their ``__init__``, made smaller."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import outputs
from .diffusion_arguments import ARGUMENTS, KEPT, LEFT_OUT
from .diffusion_given import GIVEN
from .extras import Extra
from .inputs import BATCH, Guess, Sizes, random
from .probing import OutOfReach, watch

_LARGEST = 60_000_000
_TEXT = 7  # tokens of a prompt
# Sizes by argument, first match wins.
SIZES: list[tuple[str, int]] = [
    (r".*(head_dim|dim_head|head_size)", 16),
    (r".*heads?", 4),
    (r".*(layers|blocks|depth|num_layers_per_block|layers_per_block)", 2),
    (r"sample_(size|height|width|frames)", 8),
    (r".*(inner_dim|ffn_dim|mlp_dim|intermediate_size)", 128),
    (r"in_channels|out_channels|.*freq.*|.*patch.*|.*compression.*|.*scale.*", 1 << 30),
    (r".*(_dims?|hidden_size|_channels|dim|width|embed)", 64),
    (r".*vocab.*|num_embeds_ada_norm|num_classes", 100),
]
# Sizes that a class leaves out by default, but needs.
NEEDED = {"sample_size": 8, "in_channels": 4, "patch_size": 2, "num_layers": 2, "caption_channels": 64}


def small(model_class: Any) -> dict[str, Any]:
    """Arguments of a small model, by the rules."""
    found: dict[str, Any] = {}
    defaults = {name: one.default for name, one in inspect.signature(model_class.__init__).parameters.items()}
    for name, value in defaults.items():
        if isinstance(value, (list, tuple)) and value and all(type(one) is int for one in value):
            if name == "block_out_channels":
                found[name] = type(value)(min(one, 32) for one in value)
            elif sum(value) == defaults.get("attention_head_dim"):  # shares of a rotary embedding
                found[name] = type(value)([4] + [(16 - 4) // (len(value) - 1)] * (len(value) - 1))
        elif value is None and name in NEEDED:
            found[name] = NEEDED[name]
        elif type(value) is int:
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)
            if size < value:
                found[name] = size
    return found | ARGUMENTS.get(model_class.__name__, {})


def _states(sizes: Sizes) -> list[torch.Tensor]:
    channels = sizes.number("in_channels", default=4)
    return [
        random(*shape)
        for shape in (
            (BATCH, channels, 8, 8),
            (BATCH, channels, 4, 8, 8),
            (BATCH, 16, channels),
            (BATCH, 4, channels, 8, 8),
            (BATCH, channels, 16),
            (BATCH, 64),
        )
    ]


def _prompts(sizes: Sizes) -> list[torch.Tensor]:
    names: tuple[str, ...] = (
        "joint_attention_dim",
        "cross_attention_dim",
        "caption_channels",
        "text_embed_dim",
        "text_dim",
    )
    names += ("encoder_hid_dim", "caption_dim", "cross_attention_input_dim", "context_in_dim", "cap_feat_dim")
    widths = [sizes.number(name, default=0) for name in names] + [64]
    return [random(BATCH, _TEXT, width) for width in dict.fromkeys(widths) if width]


def _pooled(sizes: Sizes) -> list[torch.Tensor]:
    return [random(BATCH, sizes.number("pooled_projection_dim", "pooled_projections_dim", default=64))]


# By a parameter's name, what it may be given.
VALUES: dict[str, Callable[[Sizes], list[Any]]] = {
    "hidden_states": _states,
    "sample": _states,
    "encoder_hidden_states": _prompts,
    "encoder_attention_mask": lambda _: [torch.ones(BATCH, _TEXT), torch.ones(BATCH, _TEXT).bool()],
    "encoder_hidden_states_mask": lambda _: [torch.ones(BATCH, _TEXT).bool()],
    "r_timestep": lambda _: [torch.tensor([0.1, 0.2])],
    "timestep_r": lambda _: [torch.tensor([0.1, 0.2])],
    "image_latents": _states,
    "context_latents": _states,
    "global_hidden_states": _pooled,
    "prior_token_id": lambda _: [torch.ones(BATCH, 16).long()],
    "prior_token_drop": lambda _: [torch.zeros(BATCH, 16).bool()],
    "attention_mask": lambda _: [torch.ones(BATCH, _TEXT)],
    "pooled_projections": _pooled,
    "timestep": lambda _: [torch.tensor([5, 500]), torch.tensor([0.3, 0.7])],
    "timesteps": lambda _: [torch.tensor([5, 500])],
    "guidance": lambda _: [torch.tensor([3.0, 3.0])],
    "class_labels": lambda _: [torch.tensor([1, 2])],
    "img_ids": lambda sizes: [_ids(16, sizes)],
    "txt_ids": lambda sizes: [_ids(_TEXT, sizes)],
    "original_size": lambda _: [torch.tensor([[64, 64]] * BATCH)],
    "target_size": lambda _: [torch.tensor([[64, 64]] * BATCH)],
    "crop_coords": lambda _: [torch.tensor([[0, 0]] * BATCH)],
    "img_shapes": lambda _: [[(1, 4, 4)] * BATCH],
    "num_frames": lambda _: [1],
    "height": lambda _: [4],
    "width": lambda _: [4],
    "fps": lambda _: [torch.tensor([8, 8]), 24],
    "added_time_ids": lambda _: [torch.ones(BATCH, 3)],
    "proj_embedding": lambda _: [random(BATCH, 64)],
    "added_cond_kwargs": lambda _: [{"resolution": None, "aspect_ratio": None}],
}


def _ids(length: int, sizes: Sizes) -> torch.Tensor:
    axes = sizes.value("axes_dims_rope")
    return torch.arange(length)[:, None].repeat(1, len(axes) if axes else 3).float()


def _guesses(model: Any) -> Iterator[Guess]:
    """What its required parameters may be given; then with those that it names itself as missing."""
    parameters = inspect.signature(model.forward).parameters
    wanted: tuple[str, ...] = (
        "img_ids",
        "txt_ids",
        "timestep",
        "pooled_projections",
        "encoder_hidden_states",
        "added_cond_kwargs",
    )
    wanted += ("encoder_attention_mask", "encoder_hidden_states_mask", "class_labels", "img_shapes", "num_frames")
    wanted += ("height", "width", "image_latents", "global_hidden_states")
    required = [
        name for name, one in parameters.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    ]
    more = [name for name in wanted if name in parameters and name not in required]
    more += ["guidance"] if "guidance" in parameters and getattr(model.config, "guidance_embeds", False) else []
    sizes = Sizes(SimpleNamespace(**dict(model.config)))
    given = {name: value() if callable(value) else value for name, value in GIVEN.get(type(model).__name__, {}).items()}
    for names in ([*required, *more], required):
        names = [name for name in names if name not in given]
        if missing := [name for name in names if name not in VALUES]:
            raise NotImplementedError(f"nothing known to give it as {', '.join(missing)}")
        for values in itertools.product(*(VALUES[name](sizes) for name in names)):
            yield dict(zip(names, values, strict=True)) | given


class Diffuser(Extra):
    """A model class of diffusers."""

    def unquantized(self) -> set[str]:
        """Those that are not called, as another module multiplies with their weight, and those that `KEPT` names."""
        assert not isinstance(self._found, OutOfReach)
        model = self._found[0]().eval()
        called = watch(model)
        with torch.no_grad():
            model(**self.inputs())
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        pattern = KEPT.get(self.name, "")
        return {name for name in layers if name not in called or re.fullmatch(pattern, name)}


def _found(model_class: Any) -> tuple[Callable[[], nn.Module], Guess]:
    if (reason := LEFT_OUT.get(model_class.__name__)) is not None:
        raise OutOfReach(reason)
    build = functools.partial(model_class, **small(model_class))
    with torch.device("meta"):
        if sum(parameter.numel() for parameter in build().parameters()) > _LARGEST:
            raise OutOfReach("still large when shrunk")
    torch.manual_seed(0)
    model, failures = build().eval(), []
    for guess in _guesses(model):
        try:
            with torch.no_grad():
                outputs.logits(model(**guess))
            return build, guess
        except Exception as error:
            failures.append(error)
    raise _farthest(failures)


def _farthest(failures: list[Exception]) -> Exception:
    """The one that was raised deepest inside of the model: by what was nearest to fitting."""
    return max(failures, key=lambda error: len(list(traceback.walk_tb(error.__traceback__))))


def toys() -> list[Extra]:
    """Every transformer and UNet of the installed diffusers; none where it is not installed."""
    try:
        import diffusers
    except ImportError:
        return []
    found = []
    for name in sorted(name for name in dir(diffusers) if re.search("Transformer|UNet|DiT", name)):
        model_class = getattr(diffusers, name)
        if inspect.isclass(model_class) and issubclass(model_class, diffusers.ModelMixin):
            found.append(Diffuser(name, "diffusers", functools.partial(_found, model_class)))
    return found
