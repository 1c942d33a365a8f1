"""Releases that are known not to go together, or not with this machine. Few, each with its source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from packaging.requirements import Requirement

from ..engine.versions import within


@dataclasses.dataclass(frozen=True)
class Clash:
    """One that was seen.

    Attributes:
        releases: requirements that must all be met, comma-free each, as ``("peft<0.20", "transformers>=5.2")``.
        text: what happens, and what to do.
        source: where it is recorded: a page of this repository, or an upstream thread.
        without_gpu: whether it is of machines without a GPU alone.
    """

    releases: tuple[str, ...]
    text: str
    source: str
    without_gpu: bool = False

    def applies(self, versions: Mapping[str, str], has_gpu: bool) -> bool:
        """Whether it is one of these releases, on a machine with or without a GPU."""
        return not (self.without_gpu and has_gpu) and all(_met(release, versions) for release in self.releases)


_PAGE = "docs/versions.md"

CLASHES = (
    Clash(
        ("wrapt<1.15",),
        "two threads that import two patched libraries deadlock: take wrapt 1.15 or newer",
        _PAGE,
    ),
    Clash(
        ("bitsandbytes<0.46",),
        "4-bit layers have no kernels for a CPU: nothing here can run without a GPU before bitsandbytes 0.46",
        _PAGE,
        without_gpu=True,
    ),
    Clash(
        ("bitsandbytes<0.47",),
        "without the shim a layer's first input overrules bnb_4bit_compute_dtype; with it training outside of autocast "
        "computes in the configured dtype, so its bits differ from an unpatched run's",
        "bitsandbytes-foundation/bitsandbytes#1623",
    ),
    Clash(
        ("bitsandbytes<0.48",),
        "the process dies where a layer of one row is quantized (Qwen2-MoE's shared gate): name it in "
        "llm_int8_skip_modules, or take 0.48",
        _PAGE,
    ),
    Clash(
        ("peft<0.10",),
        "4-bit layers take no DoRA, and no batch of adapter names",
        _PAGE,
    ),
    Clash(
        ("peft<0.15",),
        "merging an adapter, and DoRA, dequantize a 4-bit weight on a GPU alone",
        _PAGE,
        without_gpu=True,
    ),
    Clash(
        ("peft<0.20", "transformers>=5.2"),
        'target_modules="all-linear" is taken for a set of letters where a mixture of experts is converted: name the '
        "modules, or take peft 0.20",
        _PAGE,
    ),
    Clash(
        ("peft<0.20",),
        "BOFT, HRA and SHiRA cannot train k-bit layers, with the shim as without",
        _PAGE,
    ),
    Clash(
        ("torch<2.7",),
        "a compiled model with an LSTM that mismatches fails: compile it without that part",
        _PAGE,
    ),
    Clash(
        ("torch<2.8",),
        "torch.compile(fullgraph=True) of a 4-bit layer is not possible, with the shim as without",
        _PAGE,
    ),
)


def found(versions: Mapping[str, str], has_gpu: bool) -> list[Clash]:
    """Those that apply here."""
    return [clash for clash in CLASHES if clash.applies(versions, has_gpu)]


def _met(release: str, versions: Mapping[str, str]) -> bool:
    wanted = Requirement(release)
    version = re.sub(r"\+.*", "", versions.get(wanted.name) or "")
    return bool(within(version, str(wanted.specifier)))
