"""qlora_bf16_patch.trace: what ran in which dtypes, and that nothing is left behind."""

import collections.abc
import copy
import dataclasses
import gc
import io
import json
import pickle
import weakref

import pytest
import torch
from rich.console import Console
from torch import nn

import qlora_bf16_patch
from qlora_bf16_patch.inspection import Trace
from qlora_bf16_patch.inspection.files import read
from qlora_bf16_patch.inspection.refused import note_of, passed
from toys.models import Generates, Toy, lora_model

from ..checks import hooked

X = torch.randn(2, 3, 64)
HEAD, PROJ = "base_model.model.head", "base_model.model.proj"


def rows(trace, path, phase=None):
    return [seen for seen in trace.ran if seen.path == path and phase in (None, seen.phase)]


def step(model):
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(X).sum().backward()


def test_each_module_has_its_dtypes_by_phase():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        step(model)
        model.eval()
        with torch.no_grad():
            model(X)
            model(X)
    assert trace.phases == ("training", "evaluation")
    (training,), (evaluation,) = (rows(trace, HEAD, phase) for phase in trace.phases)
    assert (training.inputs, training.weight, training.autocast) == (("float32",), "bfloat16", "bfloat16")
    assert training.outputs == ("bfloat16",)
    assert (evaluation.autocast, evaluation.outputs) == (None, ("float32",))
    assert (trace.ran[training], trace.ran[evaluation]) == (1, 2)
    (base,) = rows(trace, f"{PROJ}.base_layer", "evaluation")
    assert (base.weight, base.compute, base.module) == ("nf4", "bfloat16", "Linear4bit")


def test_a_cast_has_its_operation_its_patch_and_how_often():
    model = lora_model(bias=False)
    with qlora_bf16_patch.trace(model) as trace:
        for _ in range(3):
            model(X)
    ((cast, count),) = trace.casts.items()
    assert (cast.path, cast.operation, cast.operand) == (HEAD, "linear", "input")
    assert (cast.given, cast.to, cast.patch, count) == ("float32", "bfloat16", "peft.boundary", 3)
    assert trace.mismatches() == [cast]


def test_a_cast_in_an_adapters_layer_is_that_layers_patchs():
    model = lora_model()
    model.get_base_model().proj.lora_B["default"].to(torch.bfloat16)
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    assert {cast.patch for cast in trace.mismatches() if cast.path.startswith(PROJ)} == {"peft.lora.linear4bit"}


def test_tracing_changes_no_result_and_training_no_bit():
    for call in (lambda model: model(X), lambda model: model.eval()(X.bfloat16())):
        model = lora_model()
        expected = call(model)
        with qlora_bf16_patch.trace(model):
            found = call(model)
        assert torch.equal(found, expected)


def test_generation_is_a_phase_of_its_own_and_a_phase_can_be_named():
    model = lora_model(toy=Generates())
    with qlora_bf16_patch.trace(model) as trace:
        model.get_base_model().generate(X)
        with trace.phase("warm-up"):
            model(X)
        model(X)
    assert trace.phases == ("generation", "warm-up", "evaluation")
    assert "generate" not in model.get_base_model().__dict__


def test_phases_are_compared():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        step(model)
        with torch.no_grad():
            model.eval()(X)
    differences = {(one.path, one.column): (one.left, one.right) for one in trace.compare("training", "evaluation")}
    assert differences[HEAD, "outputs"] == ("bfloat16", "float32")
    assert differences[HEAD, "autocast"] == ("bfloat16", "none")
    assert differences[HEAD, "casts"] == ("none", "linear input float32 to bfloat16")
    assert (HEAD, "inputs") not in differences
    # Autocast cast in training what the layer's own patch casts in evaluation.
    assert any(cast.path == PROJ for cast in trace.casts)
    assert (PROJ, "casts") not in differences
    assert not trace.compare("training", "training")
    with pytest.raises(ValueError, match=r"no phase 'generation'.*training, evaluation"):
        trace.compare("generation", "training")


def test_another_trace_is_compared():
    model, other = lora_model(), lora_model()
    other.get_base_model().head.to(torch.float32)
    with qlora_bf16_patch.trace(model) as left:
        model(X)
    with qlora_bf16_patch.trace(other) as right:
        other(X)
    assert {(one.path, one.column) for one in left.compare(other=right)} >= {(HEAD, "weight"), (HEAD, "casts")}


def test_it_goes_to_json_and_back(tmp_path):
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    file = tmp_path / "trace.json"
    for again in (Trace.from_json(trace.to_json(file)), Trace.from_json(file), Trace.from_json(str(file))):
        assert (again.ran, again.casts, again.never_ran) == (trace.ran, trace.casts, trace.never_ran)
        assert str(again) == str(trace)
        with pytest.raises(RuntimeError, match="read from a file"), again:
            pass


@pytest.mark.parametrize("text", ["{}", "{not json", '{"format": "another"}', '{"format": 1, "ran": 2}'])
def test_what_is_no_trace_is_told(text, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no trace"):
        Trace.from_json(file)
    with pytest.raises(FileNotFoundError):
        Trace.from_json(tmp_path / "none.json")


def test_a_trace_of_before_refusals_were_told_is_read():
    found = json.loads(Trace().to_json())
    del found["refused"]
    assert not Trace.from_json(json.dumps(found)).refused


def deep(found):
    return "[" * 200_000


@pytest.mark.parametrize(
    "spoilt",
    [
        deep,
        lambda found: found["ran"][0].update(path=None),
        lambda found: found["ran"][0].update(path="\ud800"),
        lambda found: found["ran"][0].update(phase=None),
        lambda found: found["ran"][0].update(inputs=5),
        lambda found: found["ran"][0].update(outputs=[5]),
        lambda found: found["ran"][0].update(count=float("inf")),
        lambda found: found["casts"][0].update(path=3),
        lambda found: found["casts"][0].update(needed="no"),
        lambda found: found.update(never_ran=[1]),
        lambda found: found.update(error=["x"], error_phase=["y"]),
    ],
)
def test_what_could_not_be_shown_is_no_trace(spoilt, tmp_path):
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    found = json.loads(trace.to_json())
    file = tmp_path / "other.json"
    file.write_text(spoilt(found) or json.dumps(found))
    for reads in (Trace.from_json, read):
        with pytest.raises(ValueError, match=r"other\.json is (no|neither a) trace"):
            reads(file)


def test_repeated_layers_are_one_row():
    class Layers(Toy):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.LayerNorm(8, dtype=torch.bfloat16) for _ in range(4))
            self.layers[2].float()

        def forward(self, x):
            x = super().forward(x).to(torch.bfloat16)
            for layer in self.layers:
                x = layer(x)
            return x

    model = lora_model(toy=Layers())
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    output = io.StringIO()
    Console(file=output, width=200).print(trace)
    for text in (str(trace), output.getvalue()):
        assert "layers.[0-1, 3]" in text
        assert "layers.2" in text
        assert "linear has its input cast from float32 to bfloat16 by peft.boundary, once in 1 module" in text


def test_a_module_that_never_ran_is_told():
    model = lora_model()
    model.get_base_model().unused = nn.Linear(2, 2)
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    assert trace.never_ran == ("base_model.model.unused",)
    assert "1 module with a weight never ran: base_model.model.unused" in str(trace)


def test_a_model_without_a_quantized_layer_is_told():
    with pytest.raises(ValueError, match="Linear has no bitsandbytes 4- or 8-bit layer"):
        qlora_bf16_patch.trace(nn.Linear(2, 2))


def test_what_is_no_module_is_told():
    with pytest.raises(TypeError, match=r"trace takes a torch\.nn\.Module, and was given str"):
        qlora_bf16_patch.trace("model")


def test_a_trace_within_a_trace_is_told_and_leaves_the_outer_one():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        with pytest.raises(RuntimeError, match="is being traced already"), qlora_bf16_patch.trace(model.base_model):
            pass
        model(X)
    assert rows(trace, HEAD)
    with qlora_bf16_patch.trace(model):
        pass


def test_an_error_in_the_block_leaves_no_hook_and_is_told_with_its_place():
    model = lora_model()
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="same dtype"):
        with qlora_bf16_patch.trace(model) as trace:
            model(X)
    assert not hooked(model)
    assert trace.error.startswith(f"{HEAD}: ")
    assert not trace.never_ran
    assert "It ended with torch's refusal in base_model.model.head" in str(trace)


def test_meta_tensors_and_no_tensor_at_all():
    model = lora_model()
    model.get_base_model().other = nn.Linear(4, 4, device="meta")
    with qlora_bf16_patch.trace(model) as trace:
        model.get_base_model().other(torch.randn(2, 4, device="meta"))
    (seen,) = trace.ran
    assert (seen.inputs, seen.weight, seen.autocast) == (("float32",), "float32", None)
    assert "is empty" not in str(trace)


def test_no_tensor_and_no_module_is_kept():
    model, x = lora_model(), torch.randn(2, 64)
    with qlora_bf16_patch.trace(model) as trace:
        model(x)
    tensor, module = weakref.ref(x), weakref.ref(model)
    del x, model
    gc.collect()
    assert tensor() is None
    assert module() is None
    assert trace.ran


def test_hooks_of_others_are_left_alone():
    model, calls = lora_model(), []
    model.get_base_model().head.register_forward_hook(lambda *_: calls.append(1))
    with qlora_bf16_patch.trace(model):
        model(X)
    model(X)
    assert len(calls) == 2
    assert hooked(model) == [model.get_base_model().head]


class Slotted(Generates):
    __slots__ = ("note",)

    def __init__(self):
        super().__init__()
        self.note = "kept"


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize("toy", [Generates, Slotted])
def test_a_copy_or_pickle_of_the_block_has_nothing_of_the_trace(toy, copied):
    model = toy()
    with qlora_bf16_patch.trace(model) as trace:
        other = copied(model)
        if copied is not copy.copy:  # which shares the modules inside
            assert not hooked(other)
            other(X.bfloat16())
        assert not trace.ran
    assert not other._forward_hooks
    assert not other._forward_pre_hooks
    assert not other._forward_hooks_always_called
    assert not {"generate", "__reduce_ex__"} & {*vars(other), *vars(model)}
    assert other.generate.__self__ is other
    assert getattr(other, "note", "kept") == "kept"


class Normalized(Generates):
    """Its head copies itself (torch/nn/utils/parametrize.py), as a convolution of Wav2Vec2 does."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.head)


def test_a_module_with_a_way_of_copying_of_its_own_is_copied_without_the_hooks():
    model = Normalized()
    with qlora_bf16_patch.trace(model):
        other = copy.deepcopy(model)
    for one in (model, other):
        assert not hooked(one)
        assert not any({"__reduce_ex__", "__deepcopy__"} & vars(module).keys() for module in one.modules())
    assert torch.equal(other(X.bfloat16()), model(X.bfloat16()))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled])
def test_a_copy_has_nothing_of_blocks_within_blocks(copied):
    model = Generates()
    with qlora_bf16_patch.trace(model), qlora_bf16_patch.assert_dtypes(model):
        other = copied(model)
        model(X.bfloat16())
    assert not {"generate", "__reduce_ex__"} & {*vars(other), *vars(model)}


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_end_in_any_order(first):
    model = Generates()
    blocks = [qlora_bf16_patch.trace(model), qlora_bf16_patch.assert_dtypes(model)]
    for block in blocks:
        block.__enter__()
    model(X.bfloat16())
    for block in (blocks[first], blocks[1 - first]):
        block.__exit__(None, None, None)
    blocks[0]._stack.close()
    assert not hooked(model)
    assert not any("__reduce_ex__" in vars(module) for module in model.modules())


def test_a_generate_that_is_put_in_stays_and_reaches_the_one_before():
    model = Generates()
    with qlora_bf16_patch.trace(model) as trace:
        before = model.generate
        model.generate = lambda x: before(x)
    ran = sum(trace.ran.values())
    assert "generate" in vars(model)
    model.generate(X.bfloat16())
    assert sum(trace.ran.values()) == ran


def test_a_block_that_ends_while_a_module_runs_does_not_break_its_call():
    model = Generates()
    trace = qlora_bf16_patch.trace(model)
    model.register_forward_hook(lambda *_: trace.__exit__(None, None, None))  # before those of the trace
    trace.__enter__()
    model(X.bfloat16())
    assert len(hooked(model)) == 1


def test_a_scripted_module_takes_no_hook_and_runs_as_ever():
    model = Generates()
    model.head = nn.Sequential(torch.jit.script(nn.LayerNorm(64, dtype=torch.bfloat16)), model.head)
    with qlora_bf16_patch.trace(model) as trace:
        model(X.bfloat16())
    assert rows(trace, "head.1")
    assert not rows(trace, "head.0")
    assert "head.0" in trace.never_ran
    assert [held.path for held in qlora_bf16_patch.report(model).held if held.path == "head.0"]


def test_a_trace_is_copied_and_pickled():
    model = Generates()
    with qlora_bf16_patch.trace(model) as trace:
        model(X.bfloat16())
    for other in (copy.deepcopy(trace), pickled(trace)):
        assert other.to_json() == trace.to_json()


def test_a_copy_keeps_the_hooks_and_the_generate_of_others():
    model, own = Generates(), print
    model.generate = own
    model.head.register_forward_hook(own)
    with qlora_bf16_patch.trace(model):
        other = copy.deepcopy(model)
    for one in (other, model):
        assert one.generate is own
        assert list(one.head._forward_hooks.values()) == [own]


class Stops(Generates):
    stop = False

    def forward(self, x):
        if self.stop:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("call", ["__call__", "generate"])
def test_an_interrupted_call_leaves_no_phase_behind(call):
    model = Stops().train()
    with qlora_bf16_patch.trace(model) as trace:
        model.stop = True
        with pytest.raises(KeyboardInterrupt):
            getattr(model, call)(X.bfloat16())
        model.stop = False
        model.eval()(X.bfloat16())
    assert trace.phases == ("evaluation",)


def test_a_call_around_an_interrupted_one_is_seen():
    class Outer(Toy):
        def __init__(self):
            super().__init__()
            self.inner = Stops()
            self.inner.stop = True

        def forward(self, x):
            with pytest.raises(KeyboardInterrupt):
                self.inner(x)
            return super().forward(x)

    model = Outer()
    with qlora_bf16_patch.trace(model) as trace:
        model(X.bfloat16())
    assert [seen.path for seen in trace.ran if seen.path in ("", "inner")] == [""]


def test_a_generate_inside_of_a_forward_is_generation():
    class Inner(Generates):
        def forward(self, x, inside=False):
            return super().forward(x) if inside else self.generate(x)

        def generate(self, x):
            return self(x, inside=True)

    model = Inner().eval()
    with qlora_bf16_patch.trace(model) as trace:
        model(X.bfloat16())
    assert {seen.phase for seen in rows(trace, "head")} == {"generation"}
    assert {seen.phase for seen in rows(trace, "")} == {"generation", "evaluation"}


def test_a_dataclass_with_a_field_that_is_not_set_is_looked_through():
    @dataclasses.dataclass
    class Options:
        scale: torch.Tensor
        unset: int = dataclasses.field(init=False)

    class Takes(Toy):
        def forward(self, x, options):
            return super().forward(x)

    model = lora_model(toy=Takes())
    with qlora_bf16_patch.trace(model) as trace:
        model(X, options=Options(torch.ones(1, dtype=torch.float16)))
    assert [seen.inputs for seen in rows(trace, "base_model.model")] == [("float32", "float16")]


def test_a_module_that_is_put_in_is_not_said_to_have_never_run_and_its_casts_are_seen():
    model, other = lora_model(bias=False), lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        model.get_base_model().head = nn.Linear(64, 8, dtype=torch.bfloat16)
        model(X)
        other(X)
    assert not trace.never_ran
    assert [(cast.operation, count) for cast, count in trace.casts.items()] == [("linear", 1)]


def test_a_module_that_gives_nothing_while_an_error_is_handled_has_run():
    class Nothing(nn.Module):
        def forward(self, x):
            return None

    class Handles(Toy):
        def __init__(self):
            super().__init__()
            self.nothing = Nothing()

        def forward(self, x):
            try:
                raise ValueError
            except ValueError:
                self.nothing(x)
            return super().forward(x)

    model = lora_model(toy=Handles())
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    assert rows(trace, "base_model.model.nothing")


def test_the_place_of_an_error_is_its_own_and_not_that_of_one_before():
    class Caught(Toy):
        def forward(self, x):
            x = self.proj(x)
            with pytest.raises(RuntimeError):
                self.head(x)
            return x @ self.head.weight.T

    for call, place in (
        (lambda model: model(X), "base_model.model: "),
        (lambda _: X @ X.bfloat16().mT, "outside of PeftModel: "),
    ):
        model = lora_model(toy=Caught())
        with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="dtype"):
            with qlora_bf16_patch.trace(model) as trace:
                if place.startswith("outside"):
                    with pytest.raises(RuntimeError):
                        model(X)
                call(model)
        assert trace.error.startswith(place)


def test_what_trains_and_generates_alike_differs_in_the_loss_alone():
    class WithLoss(Generates):
        def forward(self, x):
            result = super().forward(x)
            return (result, result.float().sum()) if self.training else result

    model = lora_model(toy=WithLoss())
    with qlora_bf16_patch.trace(model) as trace, torch.autocast("cpu", torch.bfloat16):
        model.train()(X)
        model.get_base_model().generate(X)
    assert [(one.path, one.column) for one in trace.compare("training", "generation")] == [
        ("base_model.model", "outputs")
    ]
    with qlora_bf16_patch.trace(model) as trace:
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(X)
        model.get_base_model().generate(X)
    assert any(one.column != "outputs" for one in trace.compare("training", "generation"))


@pytest.mark.parametrize("path", ["", "base_model", "base_model.model"])
def test_a_generate_that_is_patched_in_the_block_is_the_one_that_runs(monkeypatch, path):
    model = lora_model(toy=Generates())

    def under_autocast(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.eval()(x)

    with qlora_bf16_patch.trace(model) as trace:
        monkeypatch.setattr(Generates, "generate", under_autocast)
        model.get_submodule(path).generate(X)
    assert {seen.autocast for seen in rows(trace, HEAD, "generation")} == {"bfloat16"}


def test_an_error_beside_the_model_is_not_said_to_be_the_models():
    model = Generates()
    with pytest.raises(RuntimeError), qlora_bf16_patch.trace(model) as trace:
        torch.mm(torch.ones(2, 2), torch.ones(2, 2).bfloat16())
    assert trace.error.startswith("outside of Generates: ")


def test_two_traces_have_a_place_each_of_one_error():
    error, program, block = RuntimeError(), Trace(), Trace()
    for trace, path in ((program, ".3"), (block, "head"), (program, ".1"), (block, "")):
        passed(error, trace, path, nn.Linear(2, 2), "training", out=False)
    assert note_of(error, program).path == ".3"
    assert note_of(error, block).path == "head"


class Lazy(collections.abc.Mapping):
    def __iter__(self):
        return iter(["tensor"])

    def __len__(self):
        return 1

    def __getitem__(self, name):
        raise RuntimeError("not computed yet")


def test_a_mapping_that_cannot_be_read_is_left_alone():
    class Given(Toy):
        def forward(self, x, other):
            return super().forward(x)

    model = Given()
    with qlora_bf16_patch.trace(model) as trace:
        model(X.bfloat16(), Lazy())
    assert rows(trace, "")[0].inputs == ("bfloat16",)


def test_a_generate_that_cannot_be_looked_at_is_left_alone():
    class Broken(Toy):
        @property
        def generate(self):
            raise RuntimeError("not loaded")

    model = lora_model(toy=Broken())
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    assert trace.ran


def test_a_trace_that_has_ended_is_not_begun_again():
    model = lora_model()
    with qlora_bf16_patch.trace(model) as trace:
        model(X)
    with pytest.raises(RuntimeError, match="has ended"), trace:
        pass


def test_in_a_notebook_it_is_a_table_in_which_all_is_escaped():
    model = lora_model()
    model.get_base_model().add_module("<img src=x>", nn.Linear(2, 2))
    with qlora_bf16_patch.trace(model) as trace:
        with trace.phase("<b>warm-up</b>"):
            model(X)
    text = trace._repr_html_()
    assert text.count("<table>") == 1
    assert "&lt;b&gt;warm-up&lt;/b&gt;" in text
    assert "&lt;img src=x&gt;" in text
    assert "<b>" not in text
    assert "<img" not in text
    assert "linear has its input cast from float32 to bfloat16 by peft.boundary, once in 1 module</p>" in text


def test_modules_that_are_compiled_one_by_one_are_no_more_compilations_than_ever():
    model = nn.Sequential()
    for number in range(4):  # each has a forward of its own, so that none is compiled twice
        exec(f"def forward(self, x): return self.proj(x) + {number}", found := {})
        model.append(type("Part", (Toy,), {"forward": found["forward"]})())
    with qlora_bf16_patch.trace(model), torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        for part in model.eval():
            torch.compile(part, backend="eager", fullgraph=True)(X.bfloat16())


def test_a_refusal_that_the_program_catches_is_told():
    class Serves(Toy):
        def generate(self, x):
            return self(x)

    model = lora_model(toy=Serves()).eval()
    outer = nn.Sequential(model)
    outer.forward = lambda x: model.base_model.model.generate(x)  # a generate inside of a call
    with qlora_bf16_patch.disabled(), qlora_bf16_patch.trace(outer) as trace:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="same dtype"):
                outer(X)
    ((refused, count),) = trace.refused.items()
    assert (refused.path, refused.module, refused.phase, count) == (f"0.{HEAD}", "Linear", "generation", 2)
    assert trace.error is None
    assert f"0.{HEAD}" not in trace.never_ran
    (told,) = trace.spoken_mismatches()
    assert told.startswith(f"generation: torch refused in 0.{HEAD}: expected m")
    assert told.endswith(", 2 times")
    assert told in str(trace)
    assert "Nothing was cast" not in str(trace)
    again = Trace.from_json(trace.to_json())
    assert again.refused == trace.refused
    assert "torch refused it" in trace.to_html()


def test_a_refusal_that_the_shim_mends_is_none():
    class Part(Toy):
        def forward(self, x):
            return self.proj(x) @ self.head.weight.T

    class Whole(Toy):
        def __init__(self):
            super().__init__(head=False)
            self.part = Part()

        def forward(self, x):
            return self.part(self.proj(x))

    model = lora_model(toy=Whole()).eval()
    with torch.no_grad(), qlora_bf16_patch.trace(model.base_model.model.part) as trace:
        model(X)
    assert not trace.refused
    assert trace.mismatches()
    assert all("torch refused" not in line for line in [str(trace), *trace.spoken_mismatches()])


def test_a_trace_in_which_nothing_ran_says_so():
    with qlora_bf16_patch.trace(lora_model()) as trace:
        assert "No module was seen to run" in str(trace)
    assert "No module was seen to run" in str(trace)
    assert "modules with a weight never ran" in str(trace)
    assert "Nothing was cast" not in str(trace)
