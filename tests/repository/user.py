"""A user's program with every public name in it. It is checked and not run: see test_typed.py."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, assert_type

import torch

import qlora_bf16_patch
from qlora_bf16_patch import (
    EnvironmentVariableError,
    Patch,
    Status,
    UnknownPatchError,
    Unsupported,
    guard,
    register,
)
from qlora_bf16_patch.inspection import AssertDtypes, DtypeAssertionError, Report, Trace


def prepared(model: torch.nn.Module) -> torch.nn.Module:
    model = guard(model)
    assert_type(guard(model), torch.nn.Module)
    qlora_bf16_patch.assert_dtypes(
        model,
        {"*norm*": torch.float32, "lm_head": "bfloat16", "q_proj": ("nf4", "fp4")},
        compute=torch.bfloat16,
        adapters=(torch.float32, torch.bfloat16),
    )
    return model


def looked_at(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    try:
        with qlora_bf16_patch.assert_dtypes(model, allow_casts=True):
            model(**batch)
    except DtypeAssertionError as error:
        assert_type(str(error), str)
    with qlora_bf16_patch.trace(model) as trace:
        assert_type(trace, Trace)
        with trace.phase("evaluation"):
            model(**batch)
    assert_type(trace.phases, tuple[str, ...])
    assert_type(trace.to_json(Path("trace.json")), str)
    assert_type(Trace.from_json("trace.json"), Trace)
    report = qlora_bf16_patch.report(model)
    assert_type(report, Report)
    assert_type(report.to_html("report.html"), str)
    return trace.spoken_mismatches() + report.spoken_mismatches()


def callbacks() -> list[AssertDtypes]:
    return [AssertDtypes({"*norm*": torch.float32}, every=100)]


def switched(model: torch.nn.Module) -> dict[str, str]:
    assert_type(qlora_bf16_patch.__version__, str)
    block: AbstractContextManager[None] = qlora_bf16_patch.enabled("peft.*", force=True)
    with block, qlora_bf16_patch.disabled(), qlora_bf16_patch.strict():
        model()
    try:
        qlora_bf16_patch.enable("transformers.generate")
        qlora_bf16_patch.disable("peft.*", force=True)
    except UnknownPatchError:
        qlora_bf16_patch.reset()
    except EnvironmentVariableError:
        qlora_bf16_patch.uninstall()
    for row in qlora_bf16_patch.status():
        assert_type(row, Status)
        assert_type(row.version, str | None)
        assert_type(row.notes, tuple[str, ...])
    return {row.name: row.state for row in qlora_bf16_patch.status()}


def forward(original: Any, installation: object) -> Any:
    if original is None:
        raise Unsupported("there is no such forward")
    return original


register(Patch("acme.head", "acme.layers", "Head.forward", lambda: forward, distribution="acme"))
