"""Engines of more than one process: two gloo ranks train, evaluate and generate, without and with the shim."""

import functools

import pytest

from . import branches, launch
from .engines import CHECKPOINTED, TRAINER
from .trainer import STEPS

SHARDED = ["FSDP2", "FSDP1", "FSDP1, flat"]
NAMES = ["DDP", *SHARDED, *(name + CHECKPOINTED for name in ("DDP", *SHARDED)), "Accelerate", "compiled DDP"]
ALL = [*NAMES, TRAINER]
STATES = ("state dict", "adapters", "entries")


@functools.cache
def outcomes(patched):
    """Of each scenario; one pair of processes for all, since their imports take longer than most of them."""
    return launch.outcomes([*NAMES, *branches.SCENARIOS] if patched else NAMES, patched)


@functools.cache
def ranks(name, patched):
    found = launch.launched(name, patched) if name == TRAINER else outcomes(patched)[name]
    assert "raised" not in found[0], found[0]["raised"]
    return found


@pytest.mark.parametrize("name", ALL)
def test_training_and_what_is_saved_are_the_same_bits_without_and_with_the_shim(name):
    for off, on in zip(ranks(name, False), ranks(name, True), strict=True):
        assert on["losses"] == off["losses"]
        assert len({*on["losses"]}) == len(on["losses"]) >= 3
        for state in (*STATES, "shards"):
            assert on[state] == off[state]


@pytest.mark.parametrize("name", ALL)
def test_the_ranks_hold_the_same_and_compute_the_same(name):
    first, second = ranks(name, True)
    for what in (*STATES, "evaluation", "generation", "before the last step"):
        assert first.get(what) == second.get(what)
    if name in SHARDED:
        assert first["shards"] != second["shards"]
    if name != TRAINER:  # which tells the ranks' mean
        assert first["losses"] != second["losses"]


@pytest.mark.parametrize(
    ("name", "what"),
    # Trainer evaluates under autocast: that loss is one of those that are the same bits.
    [*((name, "evaluation") for name in NAMES), *((name, "generation") for name in ALL)],
)
def test_outside_of_autocast_it_fails_without_the_shim_and_runs_with_it(name, what):
    for off, on in zip(ranks(name, False), ranks(name, True), strict=True):
        assert "same dtype" in off[what].get("error", ""), off[what]
        assert "value" in on[what], on[what]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_generation_leave_every_state_as_it_was(name):
    for on in ranks(name, True):
        assert on["unchanged"]
        assert on["before the last step"]["evaluation"] != on["evaluation"]  # there was a step


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_evaluates_and_generates_what_ddp_does(name):
    """Where it has trained the same adapters."""
    ddp, found = ranks("DDP", True)[0], ranks(name, True)[0]
    if name == "compiled DDP":
        assert found["adapters"] != ddp["adapters"]  # of one layer
        return
    for what in ("adapters", "evaluation", "generation", "before the last step"):
        assert found[what] == ddp[what]


def test_a_callback_of_trainer_generates_after_each_step():
    for off, on in zip(ranks(TRAINER, False), ranks(TRAINER, True), strict=True):
        assert ["error" in one for one in off["generations"]] == [True] * STEPS
        assert ["value" in one for one in on["generations"]] == [True] * STEPS


def test_a_call_that_gathered_shards_is_not_run_again_by_one_rank_alone():
    first, second = ranks(branches.BY_ONE, True)
    assert "same dtype" in first["error"]
    assert "since it may have exchanged tensors with other processes" in first["note"]
    assert second == {"right": True}


def test_a_new_kind_of_call_of_a_sharded_model_runs_once():
    for found in ranks(branches.BY_BOTH, True):
        assert found == {"right": True, "calls": 1}


def test_a_rank_that_waits_for_ever_is_ended_and_told():
    told = launch.outcomes(["one waits"], True, seconds=3)["one waits"][0]["raised"]
    first, second = told.split("rank 1 in one waits")
    assert "rank 0 in one waits" in first and "barrier" in first
    assert "barrier" not in second and "_one_waits" in second


def test_a_rank_that_raises_ends_the_other_one_and_what_comes_after_is_run():
    found = launch.outcomes(["one raises", "both end"], True, seconds=5)
    assert "ArithmeticError: of rank 1 alone" in found["one raises"][0]["raised"]
    assert found["both end"] == [{"rank": 0}, {"rank": 1}]
