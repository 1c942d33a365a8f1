"""A trace of a program that cannot go on breaks nothing: tests/test_run_trace.py starts programs."""

import dataclasses

import pytest
import torch

from qlora_bf16_patch.inspection.program import ProgramTrace
from qlora_bf16_patch.inspection.trace import Trace
from qlora_bf16_patch.watching import events
from toys.models import lora_model

X = torch.randn(2, 64)


@pytest.fixture
def program(monkeypatch):
    """A trace of this process, for as long as the test runs."""
    monkeypatch.setattr(torch.nn.Module, "__call__", torch.nn.Module.__call__)
    monkeypatch.setattr(events, "listeners", [])
    monkeypatch.setattr("os.register_at_fork", lambda **_: None)
    found = ProgramTrace(lambda trace: None)
    found.start()
    return found


@pytest.mark.parametrize("part", ["_remember", "_entered", "_left", "_heard"])
def test_where_it_fails_it_says_so_and_stops_and_the_program_goes_on(program, monkeypatch, part):
    calls = []

    def fails(*_):
        calls.append(part)
        raise KeyError("a module")

    model, expected = lora_model(), lora_model()(X)
    monkeypatch.setattr(ProgramTrace if part == "_remember" else Trace, part, fails)
    for _ in range(2):
        assert torch.equal(model(X), expected)
    assert program.failure == "KeyError: 'a module'"
    assert calls == [part] or part == "_remember"  # each module is looked at


def test_a_cast_in_a_module_that_was_never_called_has_the_path_that_it_was_told_with(program):
    lora_model()(X)
    (seen,) = program.casts
    program.casts[dataclasses.replace(seen, path="elsewhere")] += 1
    assert {cast.path for cast in program.result().casts} == {"base_model.model.head", "elsewhere"}
