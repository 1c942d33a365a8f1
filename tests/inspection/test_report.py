"""qlora_bf16_patch.report: what a model holds, and that what is expected of it happens when it runs."""

import contextlib
import copy
import dataclasses
import functools
import io
import sys
import types

import bitsandbytes as bnb
import pytest
import torch
import torch.distributed as dist
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import IA3Config, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.utils.other import fsdp_auto_wrap_policy
from rich.console import Console
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import qlora_bf16_patch
from qlora_bf16_patch.engine.installation import Bound
from qlora_bf16_patch.inspection import Report, advice
from qlora_bf16_patch.inspection.findings import flattening
from sweep.architectures import Language
from sweep.families import LANGUAGE
from sweep.recipes import prepared, save
from toys import devices
from toys.layers import linear4bit
from toys.llama import TOY, peft_module_casting_to_bf16, qlora_script, quantized
from toys.models import Toy, lora_model

from ..checks import state

# PEFT's, at a model of transformers 5.23.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
HEAD, PROJ = "base_model.model.head", "base_model.model.proj"


def findings(model, kind):
    return [finding for finding in qlora_bf16_patch.report(model).findings if finding.kind == kind]


TWO_LAYERS = dataclasses.replace(TOY, layers=2)


def llama(prepare=None, cast=None, lora=None, **quantization):
    model = quantized(TWO_LAYERS, **quantization)
    model = (prepare or (lambda model: model))(model)
    lora = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"} | (lora or {})
    model = get_peft_model(model, LoraConfig(**lora))
    if cast:
        cast(model)
    return model.to(devices.TYPE).eval()


kbit = functools.partial(prepare_model_for_kbit_training, use_gradient_checkpointing=False)
PREPARATIONS = {
    "plain": ({}, 0),
    "PEFT's prepare": ({"prepare": kbit}, 0),
    "qlora.py": ({"prepare": kbit, "cast": qlora_script}, 1),
    "TRL": ({"prepare": kbit, "cast": peft_module_casting_to_bf16}, 1),
    "qlora.py, 8 bits": ({"prepare": kbit, "cast": qlora_script, "bits": 8}, 1),
    "plain, 8 bits": ({"bits": 8}, 0),
    "qlora.py, DoRA": ({"prepare": kbit, "cast": qlora_script, "lora": {"use_dora": True}}, 1),
    "head trained": ({"prepare": kbit, "cast": qlora_script, "lora": {"modules_to_save": ["lm_head"]}}, 1),
}


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_what_the_first_generate_casts_is_what_was_expected(preparation):
    options, count = PREPARATIONS[preparation]
    model = llama(**options)
    expected = {
        (one.path, one.module, one.operation, one.given, one.to) for one in qlora_bf16_patch.report(model).mismatches()
    }
    ids = torch.arange(3, 9, device=devices.TYPE)[None]
    with qlora_bf16_patch.trace(model) as trace:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert expected == {(one.path, one.module, one.operation, one.given, one.to) for one in trace.mismatches()}
    assert len(expected) == count


# Its layers register their norms last, and its routers are no layers of torch's.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # PEFT's as well
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")  # PEFT's, on fused experts
@pytest.mark.parametrize("recipe", ["kbit", "qlora", "norms32", "heads"])
def test_a_router_of_a_models_own_is_told_as_possible(tmp_path, recipe):
    mixtral = Language("MixtralForCausalLM", LANGUAGE, "CAUSAL_LM")
    save(mixtral, tmp_path)
    model = prepared(mixtral, tmp_path, recipe).eval()
    report = qlora_bf16_patch.report(model)
    told = {one.path for one in report.findings if one.kind == "possible mismatch"}
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(**mixtral.inputs())
    cast = {one.path for one in trace.mismatches()}
    routers = {path for path in cast if ".gate." in path}
    assert len(routers) == (0 if recipe in ("kbit", "heads") else 2)
    assert routers <= told
    assert {one.path for one in report.mismatches()} == cast - routers


def test_adapters_of_two_dtypes_are_a_mismatch_where_the_second_product_is():
    model = lora_model()
    model.get_base_model().proj.lora_B["default"].to(BF16)
    (found,) = qlora_bf16_patch.report(model).mismatches()
    assert (found.path, found.given, found.to) == (f"{PROJ}.lora_B.default", "float32", "bfloat16")
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="dtype"):
        with qlora_bf16_patch.trace(model) as trace:
            model(torch.randn(2, 64).to(BF16))
    assert trace.error.startswith(f"{found.path}: ")
    model.disable_adapter_layers()
    assert not qlora_bf16_patch.report(model).mismatches()


class Normed(Toy):
    """A norm of a model's own in front of a head."""

    def __init__(self, norm):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(8, 64, dtype=BF16), norm
        self.head = self._modules.pop("head")

    def forward(self, ids):
        return self.head(self.norm(self.proj(self.embed_tokens(ids))))


class Norm(nn.Module):
    def __init__(self, gives_back):
        super().__init__()
        self.weight, self.gives_back = nn.Parameter(torch.ones(64)), gives_back
        self.register_buffer("called", torch.zeros(()))

    def forward(self, x):
        self.called += 1  # in place
        torch.rand(1)
        y = self.weight * x
        return y.to(x.dtype) if self.gives_back else y


@pytest.mark.parametrize("gives_back", [True, False])
def test_a_norm_of_a_models_own_is_asked_what_it_gives_and_not_called(gives_back):
    model = lora_model(toy=Normed(Norm(gives_back)))
    before = torch.get_rng_state()
    expected = [one.path for one in qlora_bf16_patch.report(model).mismatches()]
    assert torch.equal(torch.get_rng_state(), before)
    norm = model.get_base_model().norm
    assert norm.called == 0
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(torch.arange(8))
    assert norm.called
    assert expected == [one.path for one in trace.mismatches()] == ([] if gives_back else [HEAD])


class Narrows(nn.Module):
    """A norm that gives its weight's dtype, as T5's does in half precision."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, dtype=BF16))

    def forward(self, x):
        return self.weight * x.to(BF16)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.proj = Narrows(), linear4bit()

    def forward(self, x):
        return x + self.proj(self.norm(x))


class Stack(nn.Module):
    """Its head is registered before the model."""

    is_loaded_in_4bit = True

    def __init__(self, embeds):
        super().__init__()
        self.head = nn.Linear(64, 8, dtype=BF16)
        self.model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(8, 64, dtype=embeds), "layers": nn.ModuleList([Residual(), Residual()])}
        )

    def forward(self, ids):
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("embeds", [F32, BF16])
def test_a_residual_stream_keeps_the_wider_dtype_and_a_head_runs_last(embeds):
    model = lora_model(toy=Stack(embeds))
    expected = [one.path for one in qlora_bf16_patch.report(model).mismatches()]
    with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
        model(torch.arange(8))
    assert expected == [one.path for one in trace.mismatches()] == ([HEAD] if embeds == F32 else [])


def tied(model):
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return kbit(model)


TOKENS = {"trainable_token_indices": {"embed_tokens": [1, 2]}, "target_modules": ["q_proj"]}
TRAINED_BESIDE = {
    "tokens": {"lora": TOKENS},
    "tokens of tied embeddings": {"prepare": tied, "lora": TOKENS},
    "a head": {"lora": {"modules_to_save": ["lm_head"]}},
    "tokens and a head": {"lora": TOKENS | {"modules_to_save": ["lm_head"]}},
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
@pytest.mark.parametrize("kind", TRAINED_BESIDE)
def test_what_peft_trains_beside_adapters_is_expected_as_it_is_in_use(kind):
    model = llama(**{"prepare": kbit, "cast": qlora_script} | TRAINED_BESIDE[kind])
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for adapter in ("default", "other", None):
        model.set_adapter(adapter or "default")
        with model.disable_adapter() if adapter is None else contextlib.nullcontext():
            expected = {(one.operation, one.given, one.to) for one in qlora_bf16_patch.report(model).mismatches()}
            with qlora_bf16_patch.trace(model) as trace, torch.no_grad():
                model(torch.arange(3, 9, device=devices.TYPE)[None])
        assert expected == {(one.operation, one.given, one.to) for one in trace.mismatches()}, adapter


def test_it_runs_nothing_and_changes_nothing():
    model = lora_model()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    before, attributes = state(model), {path: dict(vars(module)) for path, module in model.named_modules()}
    report = qlora_bf16_patch.report(model)
    assert report.held
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name][2], after[name][2]) for name in before)
    assert attributes == {path: dict(vars(module)) for path, module in model.named_modules()}


def test_rows_say_what_a_module_holds():
    toy = Toy()
    toy.proj = bnb.nn.Linear4bit(64, 64, compute_dtype=BF16, quant_type="nf4", quant_storage=BF16).to(devices.TYPE)
    rows = {row.path: row for row in qlora_bf16_patch.report(lora_model(toy=toy)).held}
    base = rows[f"{PROJ}.base_layer"]
    assert (base.weight, base.storage, base.compute) == ("nf4", "bfloat16", "bfloat16")
    assert (base.parameters, base.trainable) == (("float32",), ())  # the bias
    assert rows[f"{PROJ}.lora_A.default"].trainable == ("float32",)
    assert rows[HEAD].parameters == ("bfloat16",)


@pytest.mark.parametrize("dtype", [F32, BF16, None])
def test_a_compute_dtype_that_was_left_is_told(dtype):
    found = findings(lora_model(compute_dtype=dtype), "compute dtype")
    assert [one.path for one in found] == ([] if dtype == BF16 else [f"{PROJ}.base_layer"])
    assert all(("float32" in one.what) == (dtype is F32) for one in found)


@pytest.mark.cpu("a GradScaler's kernels")
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_grad_scaler_refuses_what_is_told(dtype):
    model = lora_model(adapter_dtype=dtype)
    found = findings(model, "GradScaler")
    paths = [f"{PROJ}.lora_A.default", f"{PROJ}.lora_B.default"]
    assert [one.path for one in found] == ([] if dtype == F32 else paths)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(weights)
    scaler.scale(sum(weight.float().sum() for weight in weights)).backward()
    if dtype == F16:
        with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
            scaler.unscale_(optimizer)
        assert "Attempting to unscale FP16 gradients" in found[0].meaning
    else:
        scaler.unscale_(optimizer)  # of bfloat16 it is CUDA's kernel that is not there
        assert dtype == F32 or "on CUDA" in found[0].meaning


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.cpu("gloo")
@pytest.mark.filterwarnings("ignore::UserWarning")  # FSDP1's, on what one rank shards
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bnb_4bit_quant_storage": BF16}, None),
        ({}, "Cannot flatten integer dtype tensors"),
        ({"bnb_4bit_quant_storage": BF16, "prepare": kbit}, "Must flatten tensors with uniform dtype"),
        ({"bnb_4bit_quant_storage": BF16, "prepare": kbit, "cast": qlora_script}, "Must flatten tensors with uniform"),
    ],
)
def test_fsdp1_refuses_what_is_told(one_rank, options, said):
    model = llama(**options)
    found = findings(model, "FSDP1")
    wrap = functools.partial(
        FullyShardedDataParallel,
        auto_wrap_policy=fsdp_auto_wrap_policy(model),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    if said is None:
        assert not found
        wrap(model)
        return
    assert said in next(one.meaning for one in found if ".layers." in one.path)
    with pytest.raises(ValueError, match=said):
        wrap(model)


def test_the_units_hold_each_parameter_once():
    model = llama(prepare=kbit)
    units = list(flattening.units(model))
    assert units[-1][:2] == ("", model)
    held = [id(parameter) for *_, parameters in units for _, parameter in parameters]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_a_forward_that_accelerate_kept_from_before_the_patch_is_told_until_guard_mends_it():
    model = Toy()
    qlora_bf16_patch.uninstall()
    try:
        add_hook_to_module(model.proj, ModelHook())
    finally:
        qlora_bf16_patch.reset()
    (found,) = findings(model, "bypassed")
    assert (found.path, found.module) == ("proj", "Linear4bit")
    assert "_old_forward" in found.what
    assert "bitsandbytes.linear4bit" in found.meaning
    assert "guard(model)" in found.advice
    qlora_bf16_patch.guard(model)
    assert not findings(model, "bypassed")


def test_accelerates_hook_over_a_patched_forward_is_no_bypass():
    model = lora_model()
    for module in list(model.modules()):
        add_hook_to_module(module, ModelHook())
    assert not findings(model, "bypassed")


def test_two_patches_on_one_object_are_no_bypass():
    with qlora_bf16_patch.enabled("peft.tuners.autocast_output"):
        model = get_peft_model(Toy(), IA3Config(target_modules=["proj"], feedforward_modules=[]))
        layer = model.get_submodule("base_model.model.proj")
        assert isinstance(vars(layer)["forward"].shadowed, Bound)
        assert not findings(model, "bypassed")


class Overrides(bnb.nn.Linear4bit):
    def forward(self, x):
        return x


class CallsSuper(bnb.nn.Linear4bit):
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("cls", [Overrides, CallsSuper])
def test_a_subclass_with_a_forward_of_its_own_is_told_where_it_leaves_out_the_patched_one(cls):
    model = Toy()
    model.proj.__class__ = cls
    assert [one.path for one in findings(model, "bypassed")] == (["proj"] if cls is Overrides else [])


@pytest.mark.parametrize("attribute", ["proj", "head"])
def test_another_partys_forward_on_an_object_is_told(attribute):
    model = lora_model()
    part = model.get_submodule(f"base_model.model.{attribute}")
    before = part.forward
    part.forward = functools.wraps(before)(lambda x: before(x))
    assert not findings(model, "bypassed")
    for theirs in (types.MethodType(lambda self, x: x, part), lambda x: before(x)):
        part.forward = theirs
        (found,) = findings(model, "bypassed")
        assert found.path == f"base_model.model.{attribute}"
        assert "was put on this object" in found.what
        assert "only called there if that forward calls the patched one" in found.meaning


def test_a_replaced_class_method_is_told(monkeypatch):
    model = lora_model()
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: x)
    assert [one.path for one in findings(model, "bypassed")] == [f"{PROJ}.base_layer"]
    with qlora_bf16_patch.disabled("bitsandbytes.linear4bit"):
        assert not findings(model, "bypassed")


def test_what_was_not_taken_in_is_told_until_it_is_guarded():
    model = Toy()
    (found,) = findings(model, "unguarded")
    assert found.path == ""
    qlora_bf16_patch.guard(model)
    assert not findings(model, "unguarded")
    assert not findings(copy.deepcopy(model), "unguarded")


def test_a_module_around_a_model_that_was_taken_in_is_told():
    class Policy(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.value = model, nn.Linear(8, 1)

    policy = Policy(lora_model())
    assert [one.path for one in findings(policy, "unguarded")] == ["value"]
    assert not findings(policy.model.get_base_model().proj, "unguarded")  # a part of what was taken in
    qlora_bf16_patch.guard(policy)
    assert not findings(policy, "unguarded")


def test_a_mismatch_is_not_said_to_be_cast_where_nothing_watches():
    model = Normed(Norm(False))
    (found,) = findings(model, "mismatch")
    assert found.meaning.endswith("the shim does not cast it, for it does not watch the module")
    assert "guard(model)" in found.advice
    qlora_bf16_patch.guard(model)
    (found,) = findings(model, "mismatch")
    assert found.meaning.endswith("with the shim it is cast")
    assert "guard(model)" not in found.advice


def test_of_8_bits_no_storage_is_advised_that_they_do_not_have():
    found = findings(llama(bits=8), "FSDP1")
    assert "FSDP2" in found[0].advice
    assert "quant_storage" not in found[0].advice


def test_a_shim_that_is_off_is_told():
    model = lora_model()
    with qlora_bf16_patch.disabled("peft.boundary"):
        (found,) = findings(model, "unguarded")
    assert "peft.boundary is not at work" in found.what


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("trl", "--dtype bfloat16"),
        ("llamafactory", "bf16: true"),
        ("lm_eval", "bnb_4bit_compute_dtype=bfloat16"),
        ("axolotl", "bnb_config_kwargs"),
        ("swift", "--bnb_4bit_compute_dtype bfloat16"),
        (None, "BitsAndBytesConfig"),
    ],
)
def test_advice_is_in_the_words_of_the_program_in_use(monkeypatch, program, words):
    for name in advice.PROGRAMS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{advice.PROGRAMS[program][-1]}" if program else "train.py"])
    report = qlora_bf16_patch.report(lora_model(compute_dtype=F32))
    assert report.program == program
    (found,) = (one for one in report.findings if one.kind == "compute dtype")
    assert words in found.advice


def test_a_program_is_known_by_its_package_and_the_one_that_imports_the_other_stands_before_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in advice.PROGRAMS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert advice.program_in_use() is None
    monkeypatch.setitem(sys.modules, "trl", types.ModuleType("trl"))
    assert advice.program_in_use() == "trl"
    monkeypatch.setitem(sys.modules, "llamafactory", types.ModuleType("llamafactory"))
    assert advice.program_in_use() == "llamafactory"


def test_it_goes_to_json_and_back(tmp_path):
    report = qlora_bf16_patch.report(llama(prepare=kbit, cast=qlora_script))
    assert report.mismatches()
    file = tmp_path / "report.json"
    for again in (Report.from_json(report.to_json(file)), Report.from_json(file), Report.from_json(str(file))):
        assert (again.held, again.findings) == (report.held, report.findings)
        assert str(again) == str(report)


@pytest.mark.parametrize("text", ["{}", "{not json", "[]", '{"format": "another"}', '{"format": 1, "held": 2}'])
def test_what_is_no_report_is_told(text, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no report"):
        Report.from_json(file)
    with pytest.raises(FileNotFoundError):
        Report.from_json(tmp_path / "none.json")


def test_layers_that_are_alike_are_one_row_and_one_finding():
    report = qlora_bf16_patch.report(llama(prepare=kbit, cast=qlora_script))
    output = io.StringIO()
    Console(file=output, width=300).print(report)
    for text in (str(report), output.getvalue()):
        assert "layers.[0-1]" in text
        assert "layers.0" not in text
        assert "(LlamaDecoderLayer): its parameters are uint8" in text
        assert text.count("base_model.model.lm_head (Linear): it is given float32 hidden states") == 1
        assert text.count("Advice: ") == len({(one.kind, one.meaning, one.advice) for one in report.findings})


def test_a_model_of_which_nothing_is_to_be_said():
    toy = Toy(bias=False)
    with devices.on_cpu():
        layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=BF16, quant_type="nf4", quant_storage=F32)
    toy.proj = layer.to(devices.TYPE)
    toy.head.float()
    report = qlora_bf16_patch.report(lora_model(toy=toy))
    assert not report.findings
    assert str(report).endswith("Nothing to expect was found.")


def test_meta_tensors_are_told():
    with torch.device("meta"):
        model = nn.Sequential(bnb.nn.Linear4bit(64, 64, compute_dtype=BF16), nn.LayerNorm(64), nn.Linear(64, 8))
    report = qlora_bf16_patch.report(model.to(BF16))
    assert "6 parameters are meta tensors" in str(report)
    assert {row.path: row.weight for row in report.held}["2"] == "bfloat16"


def test_a_model_without_a_quantized_layer_and_what_is_no_module_are_told():
    with pytest.raises(ValueError, match="Linear has no bitsandbytes 4- or 8-bit layer"):
        qlora_bf16_patch.report(nn.Linear(2, 2))
    for other in (None, types.SimpleNamespace(model=linear4bit())):
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module"):
            qlora_bf16_patch.report(other)
