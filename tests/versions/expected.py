"""What older releases are known for: why they fail tests that are written for newer ones, or have other bits.

Each entry is a library with a range of its releases, patterns of a test's name and of its message, and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import Version

_OVERRULED = (
    "unpatched, a layer's first input overrules the configured compute dtype (bitsandbytes#1623), so a step computes "
    "in float32 what the shim computes in the configured dtype"
)
_KNOWN = (
    ("wrapt<1.15", "hooks_need_each_other", "", "hooks are called under wrapt's own lock, so 1.15 is the floor"),
    (
        "torch<2.8",
        "^(?!.*(several_graphs|dynamo_breaks))",
        "torch._dynamo.exc|fullgraph|Unsupported",
        "Dynamo cannot trace a 4-bit layer in one graph, with the shim as without",
    ),
    (
        "torch<2.8",
        "no_graph_break",
        "assert \\d+ <= \\d+",
        "where Dynamo breaks the graph of a 4-bit layer, it breaks that of a patched one more often",
    ),
    (
        "torch<2.10",
        "computed_as_in_float32",
        "aten.nonzero",
        "unpatched, no gradient of what is scattered (`masked_scatter`) is compiled",
    ),
    (
        "torch<2.7",
        "what_dynamo_breaks_the_graph_at",
        "torch.dtype|Boolean value of Tensor",
        "Dynamo mixes up the arguments of an LSTM's frames beneath a function mode, and the compiled model fails",
    ),
    (
        "torch<2.6",
        "autocast_changes_nothing",
        "equal|assert False",
        "bitsandbytes has no 8-bit kernel for a CPU there, and with gradients upstream's product under autocast stands",
    ),
    (
        "bitsandbytes<0.50",
        "rounds_the_bias_for_good",
        "",
        "unpatched, the bias is rounded at other inputs",
    ),
    ("bitsandbytes<0.49", "weight_is_not_repacked", "", "unpatched, no weight is repacked"),
    ("bitsandbytes<0.48", "gives_back_under_autocast_is_upstreams", "", "unpatched, the input's dtype comes back"),
    ("bitsandbytes<0.50", "accelerate_hooked_before", "", "unpatched, a layer refuses the test's input"),
    ("bitsandbytes<0.47", "step|trains", "away from that without", _OVERRULED),
    ("bitsandbytes<0.46", "computed_as_in_float32", "Unsupported", "a 4-bit layer is no one graph for torch.compile"),
    ("peft<0.10", "", "does not support DoRA", "4-bit layers have no DoRA"),
    ("peft<0.10", "", "adapter_names", "4-bit layers take no batch of adapters"),
    ("peft<0.15", "", "not compiled with CUDA", "merging and DoRA dequantize a 4-bit weight on a GPU alone"),
    ("peft<0.14", "", "lora_bias", "adapters have no bias"),
    ("peft<0.15", "the_second_of_two", "", "the first adapter's dtype is the second's, too, with the shim as without"),
    ("peft<0.16", "falls_back", "", "every layer takes PEFT's own forward, so there is nothing to fall back from"),
    ("peft<0.17", "param_wrapper", "", "no parameter can be adapted by itself (target_parameters)"),
    (
        "peft<0.20",
        "step",
        "BOFT|VERA.*beyond|Only Tensors of floating point|HRA on 8 bits",
        "BOFT, HRA, SHiRA cannot train k-bit layers",
    ),
    ("peft<0.16", "step", "oft_block_size", "OFT takes other options"),
    (
        "peft<0.20",
        "step",
        "PVERA.*shapes cannot be multiplied",
        "behind the mixture PVeRA has another error",
    ),
)
_KNOWN_RUNS = (
    ("bitsandbytes<0.47", "train$", "it trains, but the bits", _OVERRULED),
    ("bitsandbytes<0.48", "", "the process died", "bitsandbytes crashes when it quantizes a layer of one row"),
    (
        "transformers>=4",
        "^Qwen2MoeForCausalLM eager: generate$",
        "logits are",
        "it is the toy's seed, a rounding sends tokens to other experts; with three others the distance is 0.01",
    ),
    ("peft<0.20", "", "Target modules {", "PEFT takes all-linear for a set of letters where it converts experts"),
)


def why(test: str, message: str, versions: Mapping[str, str]) -> str:
    """Why these releases fail a test with nothing new to say of the package; empty where nobody knows."""
    return _first(_KNOWN, test, message, versions)


def why_run(run: str, message: str, versions: Mapping[str, str]) -> str:
    """The same of a run of the sweep."""
    return _first(_KNOWN_RUNS, run, message, versions)


def _first(known: tuple[tuple[str, str, str, str], ...], name: str, message: str, versions: Mapping[str, str]) -> str:
    for releases, named, said, reason in known:
        library, bounds = re.split("(?=[<>])", releases, maxsplit=1)
        fits = library in versions and Version(versions[library]) in SpecifierSet(bounds, prereleases=True)
        if fits and re.search(named, name) and re.search(said, message):
            return f"{releases}: {reason}"
    return ""
