"""What a model may be given, by its forward's signature and its configuration: guesses, the likeliest first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from toys import devices

from .options import NEEDED_INPUTS

BATCH, TOKENS = 2, 12
Guess = dict[str, Any]


class Sizes:
    """Finds a number in a configuration or, breadth first, in its parts."""

    def __init__(self, config: Any) -> None:
        self.configs = [config]
        for one in self.configs:
            parts = [getattr(one, name, None) for name in getattr(one, "sub_configs", {})]
            self.configs += [part for part in parts if part is not None]

    def value(self, *names: str) -> Any:
        """The first attribute of one of these names that is not None."""
        for config in self.configs:
            for name in names:
                if (value := getattr(config, name, None)) is not None:
                    return value
        return None

    def number(self, *names: str, default: int) -> int:
        """The same as an int; the first of several."""
        value = self.value(*names)
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        return value if isinstance(value, int) else default

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        size = self.value("image_size", "img_size")
        if isinstance(size, dict):
            size = list(size.values())
        height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size or 64,) * 2
        return self.number("num_channels", "in_channels", "in_chans", default=3), int(height), int(width)

    @property
    def patch(self) -> int:
        """Numbers in a patch of a model that is given patches."""
        frames = self.number("temporal_patch_size", "patch_temporal", default=1)
        return self.image[0] * frames * self.side * self.side

    @property
    def side(self) -> int:
        """Pixels along a side of a patch."""
        return self.number("patch_size", default=14)

    @property
    def mel(self) -> int:
        """Bins of a spectrogram."""
        return self.number(
            *("num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_dim", "num_mels"),
            *("feature_projection_input_dim", "input_feat_size", "mel_bins"),
            default=80,
        )

    @property
    def past(self) -> int:
        """Steps of a time series that a model looks back at."""
        lags = self.value("lags_sequence")
        return self.number("context_length", default=32) + (max(lags) if isinstance(lags, (list, tuple)) else 0)


def tokens(length: int = TOKENS, *, below: int = 100) -> torch.Tensor:
    return torch.randint(5, 100, (BATCH, length), generator=devices.generator(0)) % below


def random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=devices.generator(0))


def _ids(sizes: Sizes) -> list[torch.Tensor]:
    ids = tokens(below=sizes.number("vocab_size", default=100))
    return [ids, ids[:, None].repeat(1, 3, 1)]  # or three choices


def _images(sizes: Sizes) -> list[torch.Tensor]:
    channels, height, width = sizes.image
    shapes: list[tuple[int, ...]] = [(BATCH, channels, height, width)]
    if (frames := sizes.value("num_frames", "frames_per_clip")) is not None:
        shapes.insert(0, (BATCH, int(frames), channels, height, width))
    shapes += [(BATCH, number, channels, height, width) for number in (1, 2, 5)]
    return [random(*shape) for shape in [*shapes, (BATCH, channels, 224, 224), (BATCH, 16, sizes.patch)]]


def _video(sizes: Sizes) -> list[torch.Tensor]:
    channels, height, width = sizes.image
    return [random(BATCH, sizes.number("num_frames", "frames_per_clip", default=4), channels, height, width)]


def _waves(sizes: Sizes) -> list[torch.Tensor]:
    spectrogram = random(BATCH, sizes.number("max_length", default=128), sizes.mel)
    sounds = [random(BATCH, 8000) - 0.5, random(BATCH, 1, 8000) - 0.5, spectrogram]
    # The audio spectrogram transformer's configuration says how long a spectrogram is.
    return sounds[::-1] if sizes.value("max_length", "spec_size") is not None else sounds


def _spectrograms(sizes: Sizes) -> list[torch.Tensor]:
    length = sizes.number("max_source_positions", default=0)
    shapes: list[tuple[int, ...]] = [(BATCH, sizes.mel, 2 * length)] if length else []
    shapes += [(BATCH, 128, sizes.mel), (BATCH, sizes.mel, 128), (BATCH, 1, 1001, sizes.mel), (BATCH, 8000)]
    return [random(*shape) for shape in shapes]


def _series(sizes: Sizes) -> list[torch.Tensor]:
    channels = sizes.number("num_input_channels", "input_size", default=1)
    flat, deep = random(BATCH, sizes.past), random(BATCH, sizes.past, channels)
    return [flat, deep] if sizes.value("lags_sequence") is not None and channels == 1 else [deep, flat]


def _patches(sizes: Sizes) -> list[torch.Tensor]:
    return [random(BATCH * 16, sizes.patch)]


def _grid(_: Sizes) -> list[torch.Tensor]:
    return [torch.tensor([[1, 4, 4]] * BATCH)]


def _times(length: Callable[[Sizes], int]) -> Callable[[Sizes], list[torch.Tensor]]:
    return lambda sizes: [random(BATCH, length(sizes), sizes.number("num_time_features", default=1))]


def _ahead(sizes: Sizes) -> int:
    return sizes.number("prediction_length", default=8)


def _hidden(sizes: Sizes) -> list[torch.Tensor]:
    return [random(BATCH, TOKENS, sizes.number("hidden_size", "d_model", default=64))]


# By a parameter's name, tensors that it may be given.
VALUES: dict[str, Callable[[Sizes], list[torch.Tensor]]] = {
    "input_ids": _ids,
    "decoder_input_ids": lambda _: [tokens()],
    "qformer_input_ids": lambda _: [tokens()],
    "pixel_values": _images,
    "prompt_pixel_values": _images,
    "prompt_masks": _images,
    "pixel_values_videos": _video,
    "input_values": _waves,
    "input_features": _spectrograms,
    "hidden_states": _patches,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "merge_sizes": lambda _: [torch.ones(BATCH, dtype=torch.long)],
    "image_sizes": lambda sizes: [torch.tensor([sizes.image[1:]] * BATCH)],
    "past_values": _series,
    "past_time_features": _times(lambda sizes: sizes.past),
    "past_observed_mask": lambda sizes: [torch.ones_like(value) for value in _series(sizes)],
    "future_time_features": _times(_ahead),
    "flattened_patches": lambda sizes: [random(BATCH, 16, sizes.patch + 2) + 1],
    "inputs_embeds": _hidden,
    "query_embeds": _hidden,
    "latents": lambda sizes: [value.mT for value in _hidden(sizes)],
    "inputs": lambda sizes: [tokens(), *_hidden(sizes)],
    "visual_feats": lambda sizes: [random(BATCH, 5, sizes.number("visual_feat_dim", default=64))],
    "visual_pos": lambda _: [random(BATCH, 5, 4)],
    "bbox": lambda _: [random(BATCH, TOKENS, 4)],
    "aspect_ratio_ids": lambda _: [torch.ones(BATCH, 1, dtype=torch.long)],
    "aspect_ratio_mask": lambda _: [torch.ones(BATCH, 1, 4, dtype=torch.long)],
    "task_inputs": lambda _: [tokens(77)],
    "pixel_attention_mask": lambda _: [torch.ones(BATCH, 16, dtype=torch.long)],
    "spatial_shapes": lambda _: [torch.tensor([[4, 4]] * BATCH)],
    "input_features_mask": lambda _: [torch.ones(BATCH, 128, dtype=torch.long)],
}
PERCEIVED = ("pixel_values", "pixel_values_videos", "input_features", "input_values")


def guesses(
    config: Any, main: str | list[str], parameters: dict[str, bool], given: Guess | None = None
) -> Iterator[Guess]:
    """What the model may be given in evaluation.

    Args:
        config: the model's.
        main: its ``main_input_name``.
        parameters: those of its forward, and whether they are required.
        given: what each guess has; None stands for what none has.
    """
    sizes, given = Sizes(config), given or {}
    mains = [main] if isinstance(main, str) else list(main)
    wanted = [*mains, *NEEDED_INPUTS.get(type(config).__name__, ())]
    needed = [name for name, required in parameters.items() if required or name in wanted]
    perceived = [name for name in PERCEIVED if name in parameters and name not in needed]
    if "image_grid_thw" in parameters and "pixel_values" in parameters:  # before images of another form
        yield from _products(
            [*needed, "image_grid_thw"], sizes, parameters, {"pixel_values": _patches(sizes)[0]} | given
        )
    if "grid_thw" in parameters and "pixel_values" in parameters:
        for patches in (_patches(sizes)[0], _patches(sizes)[0].view(BATCH * 16, sizes.image[0], sizes.side, -1)):
            yield from _products([*needed, "grid_thw"], sizes, parameters, {"pixel_values": patches} | given)
    if "image_sizes" in parameters:
        yield from _products([*needed, *perceived[:1], "image_sizes"], sizes, parameters, given)
    for name in perceived:
        yield from _products([*needed, name], sizes, parameters, given)
    yield from _products(needed, sizes, parameters, given)


def _products(names: list[str], sizes: Sizes, parameters: dict[str, bool], fixed: Guess) -> Iterator[Guess]:
    names = [name for name in dict.fromkeys(names) if name not in fixed]
    if missing := [name for name in names if name not in VALUES]:
        raise NotImplementedError(f"nothing known to give it as {', '.join(missing)}")
    for values in itertools.product(*(VALUES[name](sizes) for name in names)):
        guess = masked(dict(zip(names, values, strict=True)) | fixed, parameters) | fixed
        yield {name: value for name, value in guess.items() if value is not None}


def masked(guess: Guess, parameters: dict[str, bool]) -> Guess:
    """The guess with a mask that leaves out the second sequence's first two tokens."""
    if guess.get("input_ids") is None or "attention_mask" not in parameters:
        return guess
    mask = torch.ones_like(guess["input_ids"])
    mask[1, ..., :2] = 0
    return guess | {"attention_mask": mask}


def with_placeholders(guess: Guess, config: Any, kind: str, count: int, parameters: dict[str, bool]) -> Guess:
    """The guess with ``count`` tokens in all that stand for what is seen or heard, in longer sequences."""
    sizes = Sizes(config)
    token = sizes.value(f"{kind}_token_id", f"{kind}_token_index", "media_token_id")
    ids = tokens(TOKENS + count // BATCH)
    ids[:, 2 : 2 + count // BATCH] = token
    guess = guess | {"input_ids": ids}
    if "mm_token_type_ids" in parameters:
        guess["mm_token_type_ids"] = (ids == token).int()
    return masked(guess, parameters)


def targets(config: Any, parameters: dict[str, bool], given: Guess) -> Iterator[Guess]:
    """What a training step may need beside: its labels, or nothing where the class has none."""
    sizes = Sizes(config)
    few, (_, height, width) = torch.tensor([0, 1]), sizes.image
    ids = given.get("input_ids", tokens()) % 16
    if "start_positions" in parameters:
        yield {"start_positions": few + 2, "end_positions": few + 4}
    if "duration_labels" in parameters:
        ones, mels = torch.ones(BATCH, TOKENS, 1), random(BATCH, TOKENS, sizes.mel)
        spoken = {"duration_labels": ones[..., 0].long(), "pitch_labels": ones, "energy_labels": ones}
        yield spoken | {"spectrogram_labels": mels}
    if "future_values" in parameters:
        past = given["past_values"]
        yield {"future_values": random(*(BATCH, _ahead(sizes), *past.shape[2:]))}
    if "target_values" in parameters:
        yield from ({"target_values": value} for value in (few, random(BATCH, sizes.number("num_targets", default=1))))
    if "labels" in parameters:
        yield from ({"labels": value} for value in (ids, few, torch.ones(BATCH, height, width, dtype=torch.long)))
    yield {}
