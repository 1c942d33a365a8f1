"""Contract G on a whole model: generation and a training step, counted and not timed."""

import functools

import pytest
import torch

from toys.conditions import counted
from toys.llama import TOY, generate, llama, step

# Third parties about each other: checkpointing under a new name, generation's defaults.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("recipe", ["plain", "kbit", "qlora"])
def test_generation_takes_fewer_operations_than_autocast_and_than_unpatched_where_that_runs(recipe):
    run = functools.partial(generate, llama(TOY, recipe).eval(), torch.arange(3, 131)[None], 3)
    shim = counted(run, "shim")
    assert shim.operations < counted(run, "autocast").operations
    if recipe != "qlora":
        unpatched = counted(run, "unpatched")
        assert shim.operations < unpatched.operations
        assert shim.peak <= unpatched.peak


@pytest.mark.parametrize("recipe", ["plain", "kbit", "qlora"])
def test_a_training_step_takes_the_unpatched_operations_and_bytes(recipe):
    run = functools.partial(step, llama(TOY, recipe).train(), torch.arange(3, 15)[None])
    shim, unpatched = counted(run, "shim"), counted(run, "unpatched")
    assert shim.operations == unpatched.operations
    assert shim.peak <= unpatched.peak
