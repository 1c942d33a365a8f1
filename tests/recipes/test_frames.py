"""Contract G without a clock: the Python frames that the patches add to a token."""

import collections
import sys

import pytest
import torch
from transformers import DynamicCache

from toys.llama import Shape, llama

LAYERS = ("patches/linear4bit", "patches/lora", "patches/autocast_output", "hosts/", "numerics/")  # not counted


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' about itself, when PEFT prepares a model
def test_a_known_kind_of_call_costs_few_frames_beside_the_layers_own():
    model = llama(Shape(32, 64, 128, 4, 2, 320), "plain").eval()
    cache, ids = DynamicCache(config=model.config), torch.randint(3, 300, (1, 6))
    frames = collections.Counter()

    def count(frame, event, _argument):
        path = frame.f_code.co_filename.partition("qlora_bf16_patch/")[2]
        if event == "call" and path and not path.startswith(LAYERS) and frame.f_code.co_name != "within_gradients":
            frames[path, frame.f_code.co_name] += 1

    with torch.no_grad():
        model(ids, past_key_values=cache)
        for _ in range(2):
            model(ids[:, :1], past_key_values=cache)
        sys.setprofile(count)
        try:
            model(ids[:, :1], past_key_values=cache)
        finally:
            sys.setprofile(None)
    assert 0 < sum(frames.values()) <= 40, frames
