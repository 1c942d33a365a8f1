"""peft.boundary: what a first call of a kind shows is known, what it did not show is found, and nothing runs twice."""

import contextlib
import copy
import re
import threading

import pytest
import torch
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch import _registry as registry
from qlora_bf16_patch.patches import boundary
from qlora_bf16_patch.watching import refusals
from toys import devices
from toys.layers import linear4bit
from toys.models import Alone, Model, Toy, lora_model

F32, BF16 = torch.float32, torch.bfloat16


class Counted(nn.Module):
    """It counts the calls of its forward."""

    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


class Stack(Counted):
    """A stack of layers that merges in its own forward what the layers' norms have promoted."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64)])
        self.table = nn.Parameter(torch.zeros(1, 4, 64, dtype=BF16))

    def forward(self, x):
        merged = self.table.clone()
        merged[torch.ones(1, 4, dtype=torch.bool)] = self.layers[0](x).flatten(0, 1)
        return merged


class Experts(Counted):
    """One of two matrices is taken, by the first entry; so is a branch of the model's own code."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([Expert(), Expert()])

    def forward(self, x, cache=None):
        if cache is not None:
            cache.append(x.dtype)
        chosen = int(x.flatten()[0] > 0)
        if chosen:
            x = x @ self.experts[0].gate @ self.experts[0].gate.T
        return self.experts[chosen](x)


class Expert(Counted):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(64, 64, dtype=BF16) / 8)

    def forward(self, x):
        return x @ self.gate


def inputs(model):
    """One for the branch that :class:`Experts` takes for the least first entry, and one for the other."""
    found = sorted((torch.randn(1, 4, 64) for _ in range(16)), key=lambda x: model.base_model.model.proj(x)[0, 0, 0])
    return found[0], found[-1]


@pytest.mark.parametrize("gradients", [False, True])
def test_operations_in_a_stacks_own_forward_are_cast_and_no_call_runs_twice(gradients):
    stack = Stack()
    model, x = lora_model(toy=Model(stack)), torch.randn(1, 4, 64)
    with torch.set_grad_enabled(gradients):
        first = model(x)
        for _ in range(3):
            assert torch.equal(model(x), first)
    assert stack.calls == 4


def test_a_branch_and_an_expert_that_the_first_call_did_not_take_are_found_and_then_known():
    experts = Experts()
    model = lora_model(toy=Model(experts)).eval()
    one, other = inputs(model)
    with torch.no_grad():
        assert model(one).dtype == F32
        calls = experts.calls
        assert model(other).dtype == F32
        assert experts.calls == calls + 1  # its forward ran again, and not the call
        for x in (one, other, one, other):
            assert model(x).dtype == F32
        assert experts.calls == calls + 5


class Appended:
    """A cache that new states are appended to, as transformers' DynamicCache."""

    def __init__(self):
        self.seen = []

    def append(self, dtype):
        self.seen = [*self.seen, dtype]


def test_a_late_call_that_was_given_a_cache_is_not_run_again_says_so_and_the_next_one_is_fixed():
    experts, cache = Experts(), Appended()
    model = lora_model(toy=Model(experts)).eval()
    one, other = inputs(model)
    with torch.no_grad():
        model(one, cache=cache)
        with pytest.raises(RuntimeError, match="dtype") as raised:
            model(other, cache=cache)
        if hasattr(raised.value, "__notes__"):
            assert re.search(r"\(.* float .* in part, `x = x @ self.experts\[0\].gate @", raised.value.__notes__[0])
            assert "since it was given a Appended, which it may have written to" in raised.value.__notes__[0]
            assert "The next call of this kind is watched" in raised.value.__notes__[0]
        assert model(other, cache=cache).dtype == F32
    assert len(cache.seen) == 3


class Raises(Counted):
    error = RuntimeError("expected my own dtype to match")

    def forward(self, x):
        raise self.error


ERRORS = [
    KeyError("x"),
    RuntimeError("out of memory"),
    ValueError("expected 3 labels but got 4"),
    TypeError("an unexpected dtype, which does not match"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_the_models_own_comes_through_and_the_call_is_not_run_again(error):
    part = Raises()
    part.error = error
    model, x = lora_model(toy=Model(part)), torch.randn(1, 4, 64)
    for calls in (1, 2):
        with pytest.raises(type(error)) as raised:
            model(x)
        assert raised.value is error
        assert part.calls == calls


def test_what_was_found_stays_found_when_another_adapter_is_added():
    norm = nn.BatchNorm1d(4)
    norm.running_mean, norm.running_var = torch.zeros(4, dtype=BF16), torch.ones(4, dtype=BF16)
    wrapped = nn.Sequential(norm, Counting())
    model, x = lora_model(toy=Model(wrapped)), torch.randn(1, 4, 64)
    model(x)
    model.add_adapter("other", model.peft_config["default"])
    for _ in range(3):
        model(x)
    assert wrapped[1].calls == 4


class Counting(Counted):
    def forward(self, x):
        return x


def test_a_deep_copy_is_watched_anew():
    model, x = lora_model(toy=Model(Expert())), torch.randn(1, 4, 64)
    expected = model(x)
    other = copy.deepcopy(model)
    for _ in range(2):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("mismatch", [False, True])
def test_blocks_that_are_compiled_by_themselves_are_compiled_once(mismatch):
    def graphs():
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        block = Expert()
        block.compile(backend=counter)
        model = lora_model(toy=Model(nn.Sequential(block)))
        x = torch.randn(1, 4, 64)
        with torch.no_grad():
            for _ in range(3):
                assert model(x if mismatch else x.to(BF16)).dtype == (F32 if mismatch else BF16)
        return counter.frame_count

    if not mismatch:
        with qlora_bf16_patch.disabled():
            assert graphs() == 1
    assert graphs() == 1


def test_one_thread_trains_while_another_generates():
    model, x = lora_model(toy=Model(Expert())).train(), torch.randn(1, 4, 64)
    failures = []

    def train():
        for _ in range(20):
            with torch.autocast(devices.TYPE, BF16):
                model(x).sum().backward()

    def generate():
        with torch.no_grad():
            for _ in range(20):
                assert model(x).dtype == F32

    def run(target):
        try:
            target()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in (train, generate, train, generate)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_head_that_was_put_in_later_is_mended_without_a_call():
    model, x = lora_model(), torch.randn(2, 64)
    model(x)
    model.base_model.model.head = nn.Linear(64, 16, dtype=BF16)
    for _ in range(2):
        assert model(x).shape == (2, 16)


def test_a_users_own_module_around_a_backbone_is_mended_by_guard():
    outer = nn.Sequential(lora_model(toy=Toy(head=False)), nn.Linear(64, 64, dtype=BF16), nn.ReLU(), Expert())
    x = torch.randn(2, 64)
    with pytest.raises(RuntimeError, match="dtype"):
        outer(x)
    assert qlora_bf16_patch.guard(outer)(x).dtype == F32


def test_a_single_quantized_layer_is_guarded():
    layer, x = linear4bit(), torch.randn(2, 64)
    assert torch.equal(qlora_bf16_patch.guard(layer)(x), linear4bit()(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo's, of a tensor that it looks at
def test_a_function_that_is_compiled_inside_of_a_forward_is_compiled_as_often_as_without_the_patches():
    class Fused(nn.Module):
        def __init__(self, counter):
            super().__init__()
            self.fused = torch.compile(lambda x: nn.functional.silu(x) * 2, backend=counter, fullgraph=True)

        def forward(self, x):
            return self.fused(x)

    def graphs():
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        model = lora_model(toy=Model(Fused(counter))).train()
        for _ in range(3):
            model(torch.randn(1, 4, 64)).sum().backward()
        return counter.frame_count

    with qlora_bf16_patch.disabled():
        unpatched = graphs()
    assert graphs() == unpatched == 1


def test_a_guarded_module_around_a_trained_model_evaluates_as_that_was_trained():
    model, x = lora_model(toy=Toy(head=False)).train(), torch.randn(2, 64)
    model(x).sum().backward()
    outer = qlora_bf16_patch.guard(nn.Sequential(model)).eval()
    with torch.no_grad():
        with qlora_bf16_patch.disabled():
            expected = outer(x)
        assert torch.equal(outer(x), expected)


@pytest.mark.parametrize(
    "message",
    [
        "expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16",
        "mixed dtype (CPU): expect parameter to have scalar type of Float",
        "prelu: Type promoting not supported. Got Float and BFloat16",
        "value cannot be converted to type at::BFloat16 without overflow",
        "RNN input dtype (torch.float32) does not match weight dtype (torch.bfloat16).",
        "Float did not match BFloat16",
        "\"cdist\" not implemented for 'BFloat16'",
        "\"LayerNormKernelImpl\" not implemented for 'Byte'",
        "quantile() input tensor must be either float or double dtype",
        "Found dtype Float but expected BFloat16",
        "expected dtype float for `end` but got dtype c10::BFloat16",
        "expected weight to have the same type as tensor per_sample_weights, but type Float does not equal BFloat16",
        "could not create a primitive descriptor for the LSTM forward propagation primitive",
        "torch.finfo() requires a floating point input type. Use torch.iinfo to handle 'torch.uint8'",
    ],
)
def test_what_torch_says_of_dtypes_is_known(message):
    try:
        raise RuntimeError(message)
    except RuntimeError as error:
        assert refusals._OF_DTYPES.search(str(error))
        assert not refusals.is_of_dtypes(error)  # raised by a statement here, and not by torch


def test_one_that_decodes_needs_a_cast_that_its_prompt_did_not():
    class Decoding(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(64, 64, dtype=BF16))

        def forward(self, x, cache):
            cache.append(x)
            return x @ self.gate if x.shape[1] == 1 else x

    model = lora_model(toy=Model(Decoding())).eval()
    cache = Appended()
    with torch.no_grad():
        for length in (4, 1, 1, 4, 1):
            assert model(torch.randn(1, length, 64), cache=cache).dtype == F32
    assert len(cache.seen) == 5


def test_an_error_that_stays_names_the_place_the_operation_its_dtypes_and_what_to_do():
    class ToABuffer(nn.Module):
        def forward(self, x):
            return torch.mm(x[0], x.to(BF16)[0].T, out=x.new_zeros(4, 4))

    model = lora_model(toy=Model(ToABuffer())).eval()
    for _ in range(2):
        with torch.no_grad(), pytest.raises(RuntimeError, match="dtype") as raised:
            model(torch.randn(1, 4, 64))
        if hasattr(raised.value, "__notes__"):  # Python 3.11
            (note,) = raised.value.__notes__
            for part in ("peft.boundary", "mm of torch.float32 and torch.bfloat16 in part, `return torch.mm("):
                assert part in note
            assert note.endswith("where it is made, and please report it.")


class Loses(nn.Module):
    def forward(self, x):
        return nn.functional.cross_entropy(x[0], torch.zeros(4, dtype=torch.int32))


def test_a_refusal_that_is_of_no_mixture_of_floating_dtypes_is_told_as_such():
    model = lora_model(toy=Model(Loses())).eval()
    with pytest.raises(RuntimeError, match="Int") as raised:
        model(torch.randn(1, 4, 64))
    if hasattr(raised.value, "__notes__"):
        assert "cross_entropy" in raised.value.__notes__[0]
        assert "nothing that the patch could cast" in raised.value.__notes__[0]


def test_each_cast_is_one_event_with_its_place_operand_dtypes_patch_and_kind_of_call():
    model = lora_model(toy=Model(nn.Sequential(Stack()))).eval()
    watch = boundary.watch_of(registry.installation("peft.boundary"))
    with torch.no_grad(), qlora_bf16_patch.enabled():
        watch.record.casts.clear()
        for _ in range(2):
            model(torch.randn(1, 4, 64))
        with torch.autocast(devices.TYPE, BF16):
            model(torch.randn(1, 4, 64))
    (cast,) = watch.record.casts
    assert (cast.path, cast.module, cast.operation, cast.operand) == ("part.0", "Stack", "index_put", "source")
    assert (cast.given, cast.to, cast.patch, cast.kind) == (F32, BF16, "peft.boundary", "evaluation")
    told = [note for status in qlora_bf16_patch.status() for note in status.notes]
    what = "index_put has its source cast from torch.float32 to torch.bfloat16"
    assert f"casts at 1 place: part.0: {what} (first in evaluation)" in told
    with qlora_bf16_patch.strict(), torch.no_grad(), pytest.raises(TypeError, match=r"part.0.*index_put.*source"):
        model(torch.randn(1, 4, 64))


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(64, 64, dtype=BF16) / 8)

    def forward(self, x):
        return x.add_(1) @ self.gate


def test_casts_in_compiled_code_are_told_while_it_is_traced():
    torch._dynamo.reset()
    head = nn.Linear(64, 64, bias=False, dtype=BF16)
    model = lora_model(toy=Model(nn.Sequential(Expert(), head))).eval()
    watch, x = boundary.watch_of(registry.installation("peft.boundary")), torch.randn(1, 4, 64)
    watch.record.casts.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            compiled(x)
    # A path begins at the module that Dynamo began with.
    told = [str(cast).removeprefix("base_model.model.").split(": ") for cast in watch.record.casts]
    assert [(*words, cast.module, cast.kind) for words, cast in zip(told, watch.record.casts, strict=True)] == [
        ("part.0", "matmul has its operand cast from torch.float32 to torch.bfloat16", "Expert", "compiled"),
        ("part.1", "torch.float32 hidden states are cast to its torch.bfloat16 weights", "Linear", "compiled"),
    ]
    with qlora_bf16_patch.strict(), torch.no_grad(), pytest.raises(RuntimeError, match=r"part.0 \(Expert\): matmul"):
        compiled(x)


def test_what_a_first_call_wrote_to_the_tensors_that_it_was_given_is_written_once():
    model = lora_model(toy=Alone(WritesToItsInput())).eval()
    for _ in range(3):
        x = torch.zeros(1, 4, 64)
        result, gate = model(x), model.base_model.model.part.gate.float()
        torch.testing.assert_close(result, torch.ones_like(x) @ gate, atol=0.1, rtol=0.01)
        assert torch.equal(x, torch.ones_like(x))


class State:
    """A linear attention's state, in a cache."""

    def __init__(self):
        self.layers = [{"state": torch.zeros(64)}]


class Decodes(nn.Module):
    """What only decoding reads comes behind a write to the cache (Glm5Next's indexer, transformers 5.23.0)."""

    def __init__(self):
        super().__init__()
        self.layer = linear4bit(bias=False)

    def forward(self, x, cache):
        cache.layers[0]["state"] += 1
        return self.layer(x.to(self.layer.weight.dtype) if x.shape[1] == 1 else x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_what_a_first_decoding_call_wrote_to_a_cache_in_place_is_written_once(context):
    model = lora_model(toy=Alone(Decodes())).eval()
    with context():
        cache = State()
        for tokens in (4, 1, 1):
            assert model(torch.randn(1, tokens, 64), cache=cache).is_floating_point()
        assert cache.layers[0]["state"].eq(3).all()


def test_a_later_call_that_wrote_to_its_input_is_not_run_again_and_the_next_one_is_mended():
    model = lora_model(toy=Alone(WritesToItsInput())).eval()
    gate = model.base_model.model.part.gate
    gate.data = gate.data.float()
    model(torch.zeros(1, 4, 64))
    gate.data = gate.data.to(BF16)
    for error in (pytest.raises(RuntimeError, match="dtype"), contextlib.nullcontext()):
        x = torch.zeros(1, 4, 64)
        with error:
            model(x)
        assert torch.equal(x, torch.ones_like(x))


class ListOfMore(list):
    n = 0


class DictOfMore(dict):
    n = 0


class Slotted:
    __slots__ = ("__dict__", "n")

    def __init__(self):
        self.n = 0


class AModule(nn.Module):
    n = 0


@pytest.mark.parametrize("make", [ListOfMore, DictOfMore, AModule, Slotted])
def test_what_an_argument_counts_is_counted_once(make):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(64, 64, dtype=BF16) / 8)

        def forward(self, x, cache):
            cache.n += 1
            return x @ self.gate

    model = lora_model(toy=Model(Counts())).eval()
    for _ in range(3):
        cache = make()
        model(torch.randn(1, 4, 64), cache=cache)
        assert cache.n == 1


def test_what_the_status_asks_does_not_grow_when_patches_are_installed_again():
    reporters = registry.installation("peft.boundary").reporters
    before = len(reporters)
    for _ in range(3):
        qlora_bf16_patch.uninstall()
        qlora_bf16_patch.reset()
    assert len(reporters) == before
