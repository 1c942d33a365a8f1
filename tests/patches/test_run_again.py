"""The first call of a kind is fixed where torch refuses an operation, and nothing that it was given is used twice.

What torch refuses in a later call runs again only where the first half can have changed nothing outside of it.
"""

import asyncio
import collections
import contextlib
import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qlora_bf16_patch
from qlora_bf16_patch import _registry as registry
from qlora_bf16_patch.patches import boundary
from qlora_bf16_patch.watching.kinds import kind_of
from toys.models import Alone, Model, lora_model

F32, BF16 = torch.float32, torch.bfloat16


class Gate(nn.Module):
    """A product that torch refuses for float32 hidden states, behind what :meth:`before` does to the arguments."""

    def __init__(self, dtype=BF16):
        super().__init__()
        self.gate = nn.Parameter(torch.eye(64, dtype=dtype))
        self.position = nn.Parameter(torch.ones(64))
        self.calls = 0

    def before(self, x, extra):
        return x

    def forward(self, x, extra=None):
        self.calls += 1
        return self.before(x, extra) @ self.gate


class AddsWhatIsTrained(Gate):
    def before(self, x, extra):
        x += self.position
        return x


class WritesThroughData(Gate):
    def before(self, x, extra):
        extra["state"].data.add_(1)
        return x + extra["state"]


class WritesToItsInput(Gate):
    def before(self, x, extra):
        return x.add_(1)


class Draws(Gate):
    """It changes arguments of Python's own and numpy's classes."""

    def before(self, x, extra):
        for value in extra:
            if isinstance(value, set):
                value.add(len(value))
            elif isinstance(value, (bytearray, np.ndarray)):
                value[0] += 1
        return x


class Appends(Gate):
    def before(self, x, extra):
        extra.extend(b"!") if isinstance(extra, bytearray) else extra.append(1)
        return x


class Reads(Gate):
    def before(self, x, extra):
        return x + sum(extra)


def model_of(part):
    return lora_model(toy=Alone(part)).eval()


def part_of(model):
    return model.base_model.model.part


def later(make, wrap=Alone):
    """A model of whose part torch refuses an operation only from the second call on."""
    model = lora_model(toy=wrap(make(F32)), bias=False).eval()
    yield model
    part_of(model).gate.data = part_of(model).gate.data.to(BF16)
    yield model


@dataclasses.dataclass(slots=True)
class WithSlots:
    x: int = 1


ITSELF = []
ITSELF.append(ITSELF)
ODD = {
    "a dataclass with slots": WithSlots(),
    "5000 numbers": list(range(5000)),
    "a deque": collections.deque(),
    "words": np.array(["a", None], dtype=object),
    "dates": np.array(["2024-01-01"], dtype="datetime64[D]"),
    "an array that is not contiguous": np.zeros((4, 4))[:, ::2],
    "a list that contains itself": ITSELF,
    "a memoryview": memoryview(b"ab"),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("what", ODD)
def test_the_first_call_is_fixed_and_runs_once_whatever_it_is_given(what, gradients):
    model = model_of(Gate())
    with torch.set_grad_enabled(gradients):
        for calls in (1, 2):
            assert model(torch.randn(1, 4, 64), extra=ODD[what]).dtype == F32
            assert part_of(model).calls == calls


@pytest.mark.parametrize("gradients", [True, False])
def test_an_iterator_is_used_up_once(gradients):
    model, x = model_of(Reads()), torch.randn(1, 4, 64)
    with torch.set_grad_enabled(gradients):
        first = model(x, extra=iter([1, 2, 3]))
        assert torch.equal(first, model(x, extra=iter([1, 2, 3])))
        torch.testing.assert_close(first, x + 6, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("make", [bytearray, list, collections.deque], ids=lambda cls: cls.__name__)
def test_a_forward_may_append_to_what_it_is_given(make):
    model, extra = model_of(Appends()), make()
    for calls in (1, 2):
        model(torch.randn(1, 4, 64), extra=extra)
        assert len(extra) == calls


def test_the_first_steps_gradients_are_those_of_the_second():
    for dtype in (F32, BF16):
        model = model_of(AddsWhatIsTrained(dtype))
        position = part_of(model).position.requires_grad_()
        for _ in range(2):
            position.grad = None
            model(torch.zeros(1, 4, 64)).sum().backward()
            assert torch.equal(position.grad, torch.full((64,), 4.0))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_was_written_through_data_is_written_once(context):
    model = model_of(WritesThroughData())
    with context():
        for calls in (1, 2):
            state = {"state": torch.zeros(64)}
            result = model(torch.zeros(1, 1, 64), extra=state)
            assert state["state"].eq(1).all()
            assert result.eq(1).all(), calls


@pytest.mark.parametrize("gradients", [False, True])
def test_arguments_without_a_dict_are_no_reason_to_fail(gradients):
    model = model_of(Draws())
    with torch.set_grad_enabled(gradients):
        extra = [{0}, np.array([1, 2]), bytearray(b"ab"), np.int64(3), range(3), slice(2), frozenset([4])]
        extra.append(torch.Generator())
        model(torch.randn(1, 4, 64), extra=extra)
        assert (extra[0], extra[1].tolist(), extra[2]) == ({0, 1}, [2, 2], bytearray(b"bb"))


class Uncopied(torch.Tensor):
    def clone(self, *args, **kwargs):
        raise NotImplementedError("no clone")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.randn(2, 64), torch.randn(3, 64)], layout=torch.strided),
        lambda: torch.randn(1, 4, 64).as_subclass(Uncopied),
        lambda: torch.eye(64).to_sparse(),
    ],
    ids=["nested", "not to be copied", "sparse"],
)
def test_a_call_that_works_works_with_tensors_that_cannot_be_looked_at(make):
    model = model_of(nn.Identity())
    value = make()
    assert model(value) is value


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_a_model_is_traced_by_torch_jit():
    model, x = model_of(Gate()), torch.randn(1, 4, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_with_a_scripted_part_is_fixed():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
    model = lora_model(toy=Alone(nn.Sequential(Gate(), scripted))).eval()
    assert model(torch.randn(1, 4, 64)).dtype == F32


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_part_of_a_model_can_be_scripted():
    model = lora_model(toy=Model(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 2), nn.ReLU())), bias=False).eval()
    x = torch.randn(1, 64)
    model(x)
    part = part_of(model)
    torch.testing.assert_close(torch.jit.script(part)(x), part(x))


class Counting(torch.autograd.graph.saved_tensors_hooks):
    """As activation offloading: it counts what it has packed and not unpacked."""

    def __init__(self):
        self.packed = 0
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor):
        self.packed += 1
        return tensor

    def unpack(self, tensor):
        self.packed -= 1
        return tensor


def test_hooks_on_saved_tensors_are_given_each_tensor_once():
    model = model_of(Gate()).train()
    for _ in range(3):
        hooks = Counting()
        with hooks:
            loss = model(torch.randn(1, 4, 64, requires_grad=True)).sum()
        loss.backward()
        assert hooks.packed == 0


class Keeps(nn.Module):
    """It shows which of its activations are alive when it runs."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.eye(64, dtype=BF16))
        self.made, self.alive = [], []

    def forward(self, x):
        self.alive.append(sum(made() is not None for made in self.made))
        hidden = x * 2
        self.made.append(weakref.ref(hidden))
        return torch.mm(hidden, self.gate).sum()


def test_nothing_of_a_refused_operation_is_kept_alive():
    model, x = model_of(Keeps()), torch.randn(8, 64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        model(x).backward()
        assert part_of(model).alive == [0]
        assert not any(made() is not None for made in part_of(model).made)
    finally:
        gc.enable()


# Later calls


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_later_call_runs_the_innermost_module_again(context):
    models = later(Gate)
    with context():
        next(models)(torch.randn(1, 4, 64))
        model = next(models)
        assert model(torch.randn(1, 4, 64)).dtype == F32
        assert part_of(model).calls == 3
        model(torch.randn(1, 4, 64))
        assert part_of(model).calls == 4


class KeepsAList(Gate):
    def before(self, x, extra):
        self.seen = [*getattr(self, "seen", []), 1]
        return x


class Cache:
    """As transformers' caches: objects in a list of an object."""

    def __init__(self):
        self.layers = [Layer()]


class Layer:
    keys = None


class KeepsACache(Gate):
    def __init__(self, dtype):
        super().__init__(dtype)
        self.cache = Cache()

    def before(self, x, extra):
        layer = self.cache.layers[0]
        layer.keys = x.clone() if layer.keys is None else torch.cat([layer.keys, x], dim=-2)
        return x


class KeepsAnIterator(Gate):
    def __init__(self, dtype):
        super().__init__(dtype)
        self.steps = iter(range(100))

    def before(self, x, extra):
        return x + next(self.steps)


class KeepsATensor(Gate):
    def __init__(self, dtype):
        super().__init__(dtype)
        self.mean = torch.zeros(64)

    def before(self, x, extra):
        self.mean.add_(1)
        return x


class WithAHook(Gate):
    def __init__(self, dtype):
        super().__init__(dtype)
        self.inner = nn.Identity()
        self.inner.register_forward_hook(lambda *_: None)


HINDERED = {
    "a list": (Gate, [1], "it was given a list"),
    "a function": (Gate, len, "it was given a builtin_function_or_method"),
    "its own list": (KeepsAList, None, "it has changed something"),
    "its own cache": (KeepsACache, None, "it has changed something"),
    "its own iterator": (KeepsAnIterator, None, "keeps an iterator or an array"),
    "its own tensor": (KeepsATensor, None, "it has changed something"),
    "hooks": (WithAHook, None, "it calls hooks of a Identity"),
    "a write": (WritesToItsInput, None, "it has changed something"),
}


@pytest.mark.parametrize("what", HINDERED)
def test_a_later_call_that_may_have_changed_something_raises_says_why_and_the_next_one_is_fixed(what):
    make, extra, reason = HINDERED[what]
    models = later(make)
    with torch.no_grad():
        next(models)(torch.zeros(1, 4, 64), extra=extra)
        model, x = next(models), torch.zeros(1, 4, 64)
        with pytest.raises(RuntimeError, match="same dtype") as raised:
            model(x, extra=extra)
        if hasattr(raised.value, "__notes__"):  # Python 3.11
            (note,) = raised.value.__notes__
            assert reason in note
            assert "The next call of this kind is watched from its start, and fixed." in note
        assert x.eq(x.max()).all()
        assert x.max() <= 1
        assert model(x, extra=extra).dtype == F32


class Checkpointed(Model):
    def forward(self, x):
        return checkpoint(self.part, self.proj(x), use_reentrant=False)


def test_a_later_call_inside_of_a_checkpoint_is_not_run_again_since_random_numbers_would_be_drawn_twice():
    models = later(Gate, Checkpointed)
    next(models).train()(torch.randn(1, 4, 64))
    model = next(models)
    with pytest.raises(RuntimeError, match="same dtype"):
        model(torch.randn(1, 4, 64))
    model(torch.randn(1, 4, 64)).sum().backward()


def test_a_late_call_of_the_model_itself_runs_again_though_the_shim_keeps_a_record_on_it():
    class Itself(Model):
        def forward(self, x):
            return self.proj(x) @ self.part.gate

    models = later(Gate, Itself)
    with torch.no_grad():
        next(models)(torch.randn(1, 4, 64))
        assert next(models)(torch.randn(1, 4, 64)).dtype == F32


def test_a_late_call_that_runs_again_keeps_nothing_alive():
    models, kept = later(Gate), []
    with torch.no_grad():
        next(models)(torch.randn(1, 4, 64))
        model = next(models)
        gc.collect()
        gc.disable()
        try:
            x = torch.randn(1, 4, 64)
            kept.append(weakref.ref(x))
            model(x)
            del x
            assert kept[0]() is None
        finally:
            gc.enable()


class Deep(nn.Module):
    """Torch refuses an operation that nothing can cast, under many modules."""

    def __init__(self, depth=0):
        super().__init__()
        self.inner = Deep(depth - 1) if depth else None
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.cross_entropy(x[0], torch.zeros(4, dtype=torch.int32)) if not self.inner else self.inner(x)


def test_what_cannot_be_fixed_does_not_run_again_at_every_level():
    model = model_of(Deep(6)).eval()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Int"):
            model(torch.randn(1, 4, 64))
    assert part_of(model).inner.inner.calls <= 4


# Kinds of call


class Stop(ValueError):
    pass


def test_calls_that_the_program_leaves_by_an_error_of_its_own_become_known(monkeypatch):
    model, watch = model_of(Gate()), boundary.watch_of(registry.installation("peft.boundary"))
    handle = part_of(model).register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop()))
    looks = []
    mode = watch.mode
    monkeypatch.setattr(watch, "mode", lambda *args, **more: looks.append(more.get("marks")) or mode(*args, **more))
    for _ in range(5):
        with contextlib.suppress(Stop):
            model(torch.randn(1, 4, 64))
    assert looks.count(True) == 2
    handle.remove()


def test_what_a_list_or_a_dict_holds_makes_no_kind_of_its_own():
    x = torch.ones(1, 2)
    kinds = {kind_of(nn.Identity(), (x, [flag] * 4), {"cache": {flag: 1}}) for flag in (True, False, None)}
    assert len(kinds) == 1


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_a_flag_and_the_class_of_an_argument_are_a_part_of_the_kind_of_call(by):
    x = torch.ones(1, 2)

    def kind(value):
        return kind_of(nn.Identity(), *(((x, value), {}) if by == "position" else ((x,), {"flag": value})))

    assert len({kind(value) for value in (True, False, None, [1], (1,), x, x.to(BF16))}) == 7


# Forwards of other shapes


class Streams(Alone):
    def forward(self, x):
        total = 0
        try:
            for _ in range(2):
                total += (yield torch.mm(x, self.part.gate)) or 0
        except KeyError:
            yield "handled"
        return total


def test_a_model_that_yields_is_fixed_and_its_generator_behaves_as_one():
    for kind in ("new", "known"):
        model = lora_model(toy=Streams(Gate())).eval().base_model.model
        for _ in range(1 if kind == "new" else 2):
            steps = model(torch.ones(1, 64))
            assert next(steps).dtype == F32
            assert steps.send(3).dtype == F32
            with pytest.raises(StopIteration) as stopped:
                steps.send(4)
            assert stopped.value.value == 7
        steps = model(torch.ones(1, 64))
        next(steps)
        assert steps.throw(KeyError()) == "handled"
        with pytest.raises(LookupError):
            steps.throw(LookupError())


class Awaits(Alone):
    async def forward(self, x):
        await asyncio.sleep(0)
        return torch.mm(x, self.part.gate)


def test_a_model_that_awaits_is_fixed():
    model = lora_model(toy=Awaits(Gate())).eval().base_model.model
    for _ in range(2):
        assert asyncio.run(model(torch.ones(1, 64))).dtype == F32


# Not "self": torch's own nn.Module.__call__ has a parameter of this name.
@pytest.mark.parametrize("name", ["instance", "installation", "args", "kwargs", "entry", "forward", "module"])
def test_any_keyword_reaches_the_models_forward(name):
    class Keywords(Model):
        def forward(this, x, /, **kwargs):
            return this.part(this.proj(x)), kwargs

    model = lora_model(toy=Keywords(Gate())).eval().base_model.model
    for _ in range(2):
        assert model(torch.randn(2, 64), **{name: 1})[1] == {name: 1}


def test_a_forward_whose_first_parameter_has_another_name_is_found():
    class Named(Gate):
        def forward(this, x, extra=None):
            return x.to(this.layer.weight.dtype) if hasattr(this, "layer") else x @ this.gate

    model = model_of(Named())
    watch = boundary.watch_of(registry.installation("peft.boundary"))
    watch.record.casts.clear()
    model(torch.randn(1, 4, 64))
    assert [cast.path for cast in watch.record.casts] == ["part"]


def test_a_patch_that_is_switched_off_in_the_middle_of_a_call_casts_nothing_from_then_on():
    class SwitchesOff(Gate):
        def before(self, x, extra):
            qlora_bf16_patch.disable("peft.boundary")
            return x

    model = model_of(SwitchesOff())
    try:
        with pytest.raises(RuntimeError, match="same dtype"):
            model(torch.randn(1, 4, 64))
    finally:
        qlora_bf16_patch.reset()
