"""One training step, one evaluation, and what the shim may not change about them."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qlora_bf16_patch
from toys import devices
from toys.layers import BF16, F32, MISMATCH, hidden_states, short
from toys.methods import Recipe
from toys.models import called

CHECKPOINTING = {"none": None, "reentrant": True, "non-reentrant": False, "whole reentrant": True, "whole": False}


@dataclass(frozen=True)
class Call:
    """How a built model is called in a training step."""

    input_dtype: torch.dtype = F32
    checkpointing: str = "none"  # or how, and whether around the layers, as transformers does, or the whole model
    autocast: bool = True

    def __str__(self) -> str:
        where = "under" if self.autocast else "outside"
        return f"{short(self.input_dtype)} input, checkpointing: {self.checkpointing}, {where} autocast"


def calls(checkpointing: Iterable[str] = CHECKPOINTING) -> Iterator[Call]:
    for input_dtype, how, autocast in itertools.product((F32, BF16), checkpointing, (True, False)):
        yield Call(input_dtype, how, autocast)


def train(model: nn.Module, call: Call) -> dict[str, torch.Tensor]:
    """One training step; returns output, loss, and the gradient of all that is trained and of the input."""
    model.train()
    x, reentrant = hidden_states(call.input_dtype), CHECKPOINTING[call.checkpointing]
    run: Callable[..., Any] = model
    model.get_base_model().checkpoint = called
    if reentrant is not None:
        x.requires_grad_()  # reentrant checkpointing has no gradient without it: enable_input_require_grads
        if call.checkpointing.startswith("whole"):
            run = lambda x: checkpoint(model, x, use_reentrant=reentrant)  # noqa: E731
        else:
            model.get_base_model().checkpoint = lambda function, x: checkpoint(function, x, use_reentrant=reentrant)
    torch.manual_seed(4)
    with torch.autocast(devices.TYPE, BF16, enabled=call.autocast):
        output = run(x)
        loss = output.float().square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {"the input": x.grad} if x.grad is not None else {}
    assert len(gradients) > (reentrant is not None), "nothing was trained"
    results = {"output": output, "loss": loss, **{f"gradient of {name}": grad for name, grad in gradients.items()}}
    return {name: value.detach() for name, value in results.items()}


@torch.no_grad()
def evaluate(model: nn.Module, call: Call) -> torch.Tensor:
    """The output of a forward in evaluation."""
    model.eval()
    torch.manual_seed(4)
    with torch.autocast(devices.TYPE, BF16, enabled=call.autocast):
        return model(hidden_states(call.input_dtype))


def difference(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """In which entry and how results are not the same bits of the same dtype; empty where they are."""
    if results.keys() != expected.keys():
        return f"other gradients: {sorted(results.keys() ^ expected.keys())}"
    for name, value in results.items():
        wanted = expected[name]
        if value.dtype != wanted.dtype:
            return f"{name} is {short(value.dtype)} with the shim, {short(wanted.dtype)} without"
        if not torch.equal(value.nan_to_num(), wanted.nan_to_num()):
            return f"{name} is {(value.double() - wanted.double()).abs().max().item():.3g} away from that without"
    return ""


@dataclass(frozen=True)
class Verdict:
    """What came of one case: ``same``, ``mended``, or ``wrong``; ``beyond`` where it fails, but not for dtypes."""

    case: str
    kind: str
    detail: str = ""


def unpatched(function: Callable[..., Any], model: nn.Module, *args: Any) -> Any:
    """What ``function`` returns for a copy of the model without the shim; None where torch refuses the dtypes."""
    try:
        with qlora_bf16_patch.disabled():
            return function(copy.deepcopy(model), *args)
    except Exception as error:
        if MISMATCH.search(str(error)):
            return None
        raise


def verdict(model: nn.Module, recipe: Recipe, call: Call) -> Verdict:
    """Trains two copies of ``model`` a step each, without and with the shim."""
    case = f"{recipe}; {call}"
    try:
        expected = unpatched(train, model, call)
    except Exception as error:
        return Verdict(case, "beyond", f"{type(error).__name__}: {error}")
    try:
        results = train(copy.deepcopy(model), call)
    except Exception as error:
        return Verdict(case, "wrong", f"raises {type(error).__name__}: {str(error).splitlines()[0]}")
    if expected is None:
        return Verdict(case, "mended")
    apart = difference(results, expected)
    return Verdict(case, "wrong" if apart else "same", apart)


def step_and_evaluation(model: nn.Module, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model gives out in a training step, and in an evaluation after it."""
    return train(model, call)["output"], evaluate(model, call)


def evaluation_verdict(model: nn.Module, recipe: Recipe, call: Call) -> Verdict:
    """Evaluates a model that was trained as it is called, where unpatched it can, as unpatched, else as in training."""
    case = f"{recipe}; {call}"
    expected = unpatched(step_and_evaluation, model, call)
    try:
        training, evaluation = step_and_evaluation(copy.deepcopy(model), call)
    except RuntimeError as error:
        return Verdict(case, "wrong", f"raises {error}")
    if expected is not None:
        apart = difference({"evaluation": evaluation}, {"evaluation": expected[1]})
        return Verdict(case, "wrong" if apart else "same", apart)
    # 8-bit layers multiply integers in evaluation and on a CPU floating numbers in training; PVeRA samples in training.
    comparable = recipe.bits == 4 and recipe.method != "PVERA"
    apart = difference({"evaluation": evaluation}, {"evaluation": training}) if comparable else ""
    return Verdict(case, "wrong" if apart else "mended", apart.replace("without", "training"))


def as_under_autocast(model: nn.Module, recipe: Recipe, dtype: torch.dtype) -> Verdict:
    """Evaluates the adapted layer outside of autocast and inside of one in its compute dtype."""
    layer, x = model.eval().get_base_model().proj, hidden_states(dtype)
    with torch.no_grad():
        outside = layer(x)
        with torch.autocast(devices.TYPE, recipe.compute_dtype):
            inside = layer(x)
    apart = difference({"evaluation": outside}, {"evaluation": inside.to(dtype)})
    return Verdict(f"{recipe}; {dtype}", "wrong" if apart else "same", apart.replace("without", "autocast"))


def option_verdict(layer: nn.Module, case: str, x: torch.Tensor) -> Verdict:
    """With ``*.autocast_output`` the layer gives back autocast's dtype, and what it has without but for rounding."""
    outputs = []
    for options in ([], ["*.autocast_output"]):
        torch.manual_seed(4)
        enabled = qlora_bf16_patch.enabled(*options) if options else contextlib.nullcontext()
        with enabled, torch.autocast(devices.TYPE, BF16):
            outputs.append(layer(x).detach())
    default, following = outputs
    # Its own parts round to autocast's dtype as well, before they are added up.
    apart = (default.float() - following.float()).abs().max().item() / default.float().abs().max().item()
    if following.dtype != BF16 or apart > 0.02:
        return Verdict(case, "wrong", f"{short(following.dtype)}, by {apart:.3g} away from what it is by default")
    return Verdict(case, "same")


def assert_parity(verdicts: list[Verdict], some_run: bool = True) -> None:
    """No case is wrong, and some ran without the shim, so that the comparison means something."""
    wrong = [f"{one.case}: {one.detail}" for one in verdicts if one.kind == "wrong"]
    some = wrong[:: -(-len(wrong) // 12) or 1]  # from everywhere in the range
    assert not wrong, "\n".join([f"{len(wrong)} of {len(verdicts)} cases, for example", *some])
    assert any(one.kind == "same" for one in verdicts) == some_run, verdicts[:3]
