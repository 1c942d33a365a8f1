"""qlora_bf16_patch.assert_dtypes: which dtypes a model has, and that none mismatch while it runs."""

import sys

import bitsandbytes
import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch import assert_dtypes
from qlora_bf16_patch.inspection import DtypeAssertionError
from qlora_bf16_patch.watching import events
from toys.layers import linear4bit
from toys.methods import Recipe
from toys.models import Generates, Layers, Toy, lora_model

from ..checks import hooked

X = torch.randn(2, 3, 64)
BF16, F32 = torch.bfloat16, torch.float32
HEAD = "base_model.model.head"


class Normed(Toy):
    """Four blocks with a norm each, of which one is in bfloat16."""

    def __init__(self):
        super().__init__(bias=False)
        self.layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(64)}) for _ in range(4))
        self.layers[1].bfloat16()


def failure(*args, **kwargs):
    with pytest.raises(DtypeAssertionError) as found:
        qlora_bf16_patch.assert_dtypes(*args, **kwargs)
    return found.value


def test_what_is_as_asserted_says_nothing():
    model = lora_model(toy=Normed())
    qlora_bf16_patch.assert_dtypes(
        model,
        {"layers": F32, "layers.1": BF16, "head": "bfloat16", "*.lora_A.*": "torch.float32", "proj": ("nf4", "fp4")},
        compute=BF16,
        adapters=F32,
    )


def test_all_failures_are_told_at_once_and_layers_that_are_alike_in_one_line():
    error = failure(lora_model(toy=Normed()), {"LayerNorm": BF16, "head": (F32, "float16")}, compute="float16")
    assert str(error).splitlines() == [
        "PeftModel has other dtypes than was asserted:",
        "  base_model.model.proj.base_layer (Linear4bit): compute dtype is bfloat16, not float16, as compute asks",
        f"  {HEAD} (Linear): weight is bfloat16, not float32 or float16, as 'head' asks",
        "  base_model.model.layers.[0, 2-3].norm (LayerNorm): weight is float32, not bfloat16, as 'LayerNorm' asks"
        ", in 3 modules",
        "  base_model.model.layers.[0, 2-3].norm (LayerNorm): bias is float32, not bfloat16, as 'LayerNorm' asks"
        ", in 3 modules",
        "Set `bnb_4bit_compute_dtype=torch.float16` in BitsAndBytesConfig.",
        *(
            f"Load the model with `dtype={dtype}`, or cast the module after that, `module.to({dtype})`; "
            "prepare_model_for_kbit_training makes all that is not packed float32."
            for dtype in (F32, BF16)
        ),
    ]
    assert len(error.failures) == 8


def test_of_patterns_that_match_a_parameter_the_last_counts():
    model = lora_model(toy=Normed())
    qlora_bf16_patch.assert_dtypes(model, {"*": F32, "layers.1": BF16, "head": BF16})
    assert "head" in str(failure(model, {"head": BF16, "layers.1": BF16, "*": F32}))


def test_a_linear_layer_that_was_not_quantized_is_told():
    error = failure(lora_model(), {"*": "nf4"})
    assert [(one.path, one.found) for one in error.failures] == [(HEAD, "bfloat16")]
    assert "llm_int8_skip_modules" in str(error)


@pytest.mark.parametrize("wanted, said", [("int8", "load_in_8bit=True"), ("fp4", 'bnb_4bit_quant_type="fp4"')])
def test_a_linear_layer_that_is_packed_otherwise_is_told(wanted, said):
    told = str(failure(lora_model(), {"proj": wanted}))
    assert f"is nf4, not {wanted}" in told
    assert said in told
    assert "llm_int8_skip_modules" not in told


@pytest.mark.parametrize("method", ["LORA", "VERA", "IA3", "OFT"])
def test_adapters_are_known_whatever_their_method(method):
    model = Recipe(method).build()
    qlora_bf16_patch.assert_dtypes(model, adapters=F32)
    error = failure(model, adapters=BF16)
    assert error.failures
    assert all("proj" in one.path and "base_layer" not in one.path for one in error.failures)
    assert "get_peft_model" in str(error)


def test_prompt_tunings_adapter_is_its_encoder():
    class Model(Toy):
        config = transformers.LlamaConfig(vocab_size=8, hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
        device = torch.device("cpu")

    toy = Model()
    toy.embedding = nn.Embedding(8, 64)
    model = get_peft_model(toy, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2))
    qlora_bf16_patch.assert_dtypes(model, adapters=F32)
    assert [one.path for one in failure(model, adapters=BF16).failures] == ["prompt_encoder.default.embedding"]


def test_a_compute_dtype_that_was_left_at_float32_fails_unless_it_is_meant():
    toy = Toy()
    toy.proj = linear4bit(F32)
    toy.proj.weight.quant_state.dtype = BF16
    assert "compute=torch.float32" in str(failure(toy))
    qlora_bf16_patch.assert_dtypes(toy, compute=F32)
    toy.proj.weight.quant_state.dtype = F32  # nothing was lost
    qlora_bf16_patch.assert_dtypes(toy)


def test_meta_tensors_and_tied_ones_have_dtypes():
    toy = Toy()
    toy.embedding = nn.Linear(64, 8, bias=False, dtype=BF16)
    toy.head.weight = toy.embedding.weight
    meta = nn.Module()
    meta.proj = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=BF16, device="meta")
    meta.embedding = meta.head = nn.Linear(64, 8, dtype=BF16, device="meta")
    for model in (toy, meta):
        qlora_bf16_patch.assert_dtypes(model, {"embedding": BF16, "head": BF16})
        assert {one.path for one in failure(model, {"head": F32}).failures} == {"head"}


def test_the_model_itself_is_named_by_its_class():
    class Own(Toy):
        def __init__(self):
            super().__init__(bias=False)
            self.scale = nn.Parameter(torch.ones(1))

    assert "  Own: scale is float32, not bfloat16, as 'scale' asks" in str(failure(Own(), {"scale": BF16}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtypes": {"hed": BF16}}, r"'hed' matches .* nowhere.*: base_model, model, proj, .*, head\."),
        ({"dtypes": {"layernorm": "nf4"}}, "matches the weight of a linear layer nowhere"),
        ({"dtypes": {"head": "bf16"}}, "'bf16' is neither a floating dtype nor one of nf4, fp4, int8"),
        ({"dtypes": {"head": torch.int8}}, "torch.int8 is neither"),
        ({"dtypes": {"head": ()}}, "empty"),
        ({"compute": "linear"}, "'linear' is neither"),
    ],
)
def test_what_asserts_nothing_is_an_error(options, said):
    with pytest.raises(ValueError, match=said):
        qlora_bf16_patch.assert_dtypes(lora_model(), **options)


def test_a_keyword_with_nothing_to_look_at_is_an_error():
    with pytest.raises(ValueError, match="adapters: the model has none"):
        qlora_bf16_patch.assert_dtypes(Toy(), adapters=F32)
    with pytest.raises(ValueError, match="no 4-bit layer"):
        qlora_bf16_patch.assert_dtypes(Layers(8), compute=BF16)
    with pytest.raises(ValueError, match="Linear has no bitsandbytes 4- or 8-bit layer"):
        qlora_bf16_patch.assert_dtypes(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"assert_dtypes takes a torch\.nn\.Module, and was given str"):
        qlora_bf16_patch.assert_dtypes("model")


def test_a_cast_in_the_block_fails_with_its_place_operation_dtypes_and_advice():
    model = lora_model()
    with pytest.raises(DtypeAssertionError) as found, qlora_bf16_patch.assert_dtypes(model):
        for _ in range(3):
            model(X)
    assert str(found.value).splitlines()[:2] == [
        "Operands were cast in PeftModel in the block, where torch would have raised:",
        f"  {HEAD}: linear has its input cast from float32 to bfloat16 by peft.boundary, 3 times",
    ]
    assert "torch.autocast" in str(found.value)
    assert [cast.path for cast in found.value.failures] == [HEAD]


@pytest.fixture
def nothing_compiled(monkeypatch):
    """Whatever another test has compiled in this process."""
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_block_in_which_nothing_mismatches_passes_and_leaves_nothing_behind():
    model, other = lora_model(), lora_model()
    with qlora_bf16_patch.assert_dtypes(model):
        assert hooked(model)
        model(X.bfloat16())
        assert not hooked(model)
        other(X)  # its cast is not this model's
    with qlora_bf16_patch.assert_dtypes(model, allow_casts=True):
        model(X)
    assert not events.listeners


def test_a_cast_in_a_module_that_is_put_in_is_seen():
    model = lora_model()
    with pytest.raises(DtypeAssertionError), qlora_bf16_patch.assert_dtypes(model):
        model.get_base_model().head = nn.Linear(64, 8, dtype=BF16)
        model(X)


def test_what_torch_refuses_without_the_shim_fails_with_its_place():
    model = lora_model()
    with qlora_bf16_patch.disabled():
        with pytest.raises(DtypeAssertionError, match=rf"torch refused .*dtype.* in {HEAD}.*autocast") as found:
            with qlora_bf16_patch.assert_dtypes(model, {"head": BF16}):
                model(X)
    assert isinstance(found.value.__cause__, RuntimeError)
    assert not hooked(model)
    assert not events.listeners


@pytest.mark.usefixtures("strict")
def test_what_strict_mode_refuses_fails_with_its_words():
    model = lora_model()
    with pytest.raises(DtypeAssertionError, match=r"head \(Linear\): linear computes in torch.bfloat16.*float32"):
        with qlora_bf16_patch.assert_dtypes(model):
            model(X)


def test_errors_of_others_come_through():
    model = lora_model()
    for raised in (KeyError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(raised)), qlora_bf16_patch.assert_dtypes(model):
            model(X)
            raise raised
    with pytest.raises(RuntimeError, match="dtype"), qlora_bf16_patch.assert_dtypes(model):
        model(X)
        X @ X.bfloat16().mT  # in no module of the model
    assert not hooked(model)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_model_that_never_ran_in_the_block_is_told():
    model, other = lora_model(), lora_model()
    with pytest.raises(ValueError, match="No module of PeftModel ran in the block"):
        with qlora_bf16_patch.assert_dtypes(model):
            other(X.bfloat16())
    assert not hooked(model)


def test_a_part_that_runs_alone_is_a_run():
    model = lora_model(toy=Generates())
    with qlora_bf16_patch.assert_dtypes(model):
        model.get_base_model().head(X.bfloat16())


@pytest.mark.parametrize("compiled", [torch.compile, lambda model, **options: model.compile(**options) or model])
def test_compiled_code_runs_and_a_cast_is_seen_where_it_is_compiled(compiled):
    torch._dynamo.reset()
    model = lora_model()
    code = compiled(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        with pytest.raises(DtypeAssertionError, match="linear has its input cast"), assert_dtypes(model):
            code(X)
        code(X)
        with assert_dtypes(model):  # it is not compiled anew for who listens
            code(X)
    torch._dynamo.reset()


def test_blocks_nest_and_run_within_a_trace():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        with qlora_bf16_patch.assert_dtypes(model, allow_casts=True):
            with pytest.raises(DtypeAssertionError), qlora_bf16_patch.assert_dtypes(model):
                model(X)
    assert len(trace.mismatches()) == 1


def test_a_block_within_itself_is_told_and_leaves_the_outer_one():
    model = lora_model()
    block = qlora_bf16_patch.assert_dtypes(model)
    with pytest.raises(DtypeAssertionError), block:
        with pytest.raises(RuntimeError, match="begun already"):
            block.__enter__()
        model(X)
    with block, torch.autocast("cpu", torch.bfloat16):  # one after another they may be the same
        model(X)
