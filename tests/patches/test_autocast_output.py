"""The option that a 4-bit layer's output follows autocast, as nn.Linear's does."""

import pytest
import torch

import qlora_bf16_patch
from toys import devices
from toys.layers import FLOATING, autocast, linear4bit
from toys.models import lora_layer

NAMES = {"bitsandbytes.autocast_output": linear4bit, "peft.lora.autocast_output": lora_layer}


@pytest.mark.failure(row=4)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_output_follows_autocast_only_where_the_option_is_on(name, dtype):
    layer, x = NAMES[name](), torch.randn(2, 64).to(dtype)
    outside = layer(x)
    with autocast(torch.bfloat16):
        by_default = layer(x)
        with qlora_bf16_patch.enabled(name):
            following = layer(x)
    with qlora_bf16_patch.enabled(name):
        assert torch.equal(layer(x), outside)
        assert layer(x).dtype == dtype
    # Under CUDA's autocast PEFT casts nothing back: a sum with a half precision that is not autocast's is float32.
    leaks = (devices.TYPE, name, dtype) == ("cuda", "peft.lora.autocast_output", torch.float16)
    assert by_default.dtype == (torch.float32 if leaks else dtype)
    assert following.dtype == torch.bfloat16
    torch.testing.assert_close(following, by_default.bfloat16(), rtol=0, atol=1e-2 if leaks else 0)


def test_status_tells_every_patch_of_a_stacked_method_as_active_and_uninstall_takes_all_out():
    layer = lora_layer()
    qlora_bf16_patch.enable("*.autocast_output")
    states = {row.name: row.state for row in qlora_bf16_patch.status()}
    assert states["peft.lora.autocast_output"] == states["peft.lora.linear4bit"] == states["peft.tuners"] == "active"
    qlora_bf16_patch.uninstall()
    try:
        assert not hasattr(type(layer).forward, "__wrapped__")
    finally:
        qlora_bf16_patch.reset()
    assert type(layer).forward.__wrapped__.__module__ == "peft.tuners.lora.bnb"
