"""``qlora-bf16-patch run --trace FILE``: what the k-bit models of an unmodified program met."""

import json
import signal
import sys

import pytest

from qlora_bf16_patch.inspection import Trace

from .starting import start

MODEL = """\
import bitsandbytes as bnb, gc, hashlib, os, signal, sys, torch, warnings, weakref
from torch import nn

class Toy(nn.Module):
    is_loaded_in_4bit = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16, quant_type="nf4")
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 8, dtype=torch.bfloat16)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.norm(self.proj(x)))

    def generate(self, x):
        with torch.no_grad():
            return self(x)

def adapted(toy=None):
    from peft import LoraConfig, get_peft_model

    return get_peft_model((toy or Toy()).to("cpu"), LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False))

def quantized():
    return Toy().to("cpu")

def step(model):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(X.bfloat16()).square().sum()
    loss.backward()
    return loss.item()

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
"""
HEAD = "base_model.model.head"


@pytest.fixture
def run(script, tmp_path):
    """Runs a program after the lines above with ``--trace``; its result, and the traces by their files' names."""

    def started(text, *options, own=(), **environ):
        file = script(MODEL + text)
        options = ("--trace", tmp_path / "t.json", *options)
        result = start(*(own or (file,)), options=options, cwd=tmp_path, **environ)
        return result, {path.name: Trace.from_json(path) for path in sorted(tmp_path.glob("*.json"))}

    return started


def paths(trace, phase=None):
    return {seen.path for seen in trace.ran if phase in (None, seen.phase)}


def test_it_is_what_a_trace_in_the_program_would_be(run, script):
    calls = """
model.eval().generate(X)
step(model)
model.eval()(x=X)
"""
    own = "import qlora_bf16_patch\nmodel = adapted()\nwith qlora_bf16_patch.trace(model) as trace:\n"
    own += calls.replace("\n", "\n    ") + "\nprint(trace.to_json())"
    expected = start(script(MODEL + own, "own.py"), command=[sys.executable])
    expected = Trace.from_json(expected.stdout)
    result, traces = run("model = adapted()" + calls)
    (found,) = traces.values()
    assert list(found.ran.items()) == list(expected.ran.items()), result.stderr
    assert (found.casts, found.never_ran) == (expected.casts, expected.never_ran)
    assert found.phases == ("generation", "training", "evaluation")
    assert found.mismatches()
    assert found.error is None
    assert "1 k-bit model; casts in 1 module; trace in t.json\n" in result.stderr


def test_no_bit_changes_and_the_exit_status_is_the_programs_own(run, script, tmp_path):
    text = """
model = adapted()
losses = [step(model), step(model), model.eval().generate(X).sum().item()]
digest = hashlib.sha256()
for parameter in model.parameters():
    for value in (parameter.detach(), parameter.grad):
        if value is not None:
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
print([loss.hex() for loss in losses], digest.hexdigest())
sys.exit(7)
"""
    plain = start(script(MODEL + text), cwd=tmp_path)
    result, traces = run(text)
    assert traces["t.json"].phases == ("training", "generation")
    assert (result.stdout, result.returncode) == (plain.stdout, 7), result.stderr


def test_a_quantized_model_without_peft_is_traced(run):
    result, traces = run("quantized().eval().generate(X.bfloat16())")
    assert traces["t.json"].phases == ("generation",), result.stderr
    assert paths(traces["t.json"]) == {"", "proj", "norm", "head"}
    assert "patches active; no k-bit model was taken in; trace in t.json" in result.stderr


def test_a_model_whose_generate_alone_is_called_has_the_paths_of_the_whole(run):
    _, traces = run("adapted().eval().generate(X)")
    assert traces["t.json"].phases == ("generation",)
    assert HEAD in paths(traces["t.json"])


def test_of_several_models_the_classes_stand_before_the_paths(run):
    _, traces = run("for toy in range(2): adapted()(X)\nquantized()(X.bfloat16())")
    (trace,) = traces.values()
    heads = [seen.path for seen in trace.ran if seen.path.endswith("head")]
    assert heads == [f"PeftModel.{HEAD}", f"PeftModel-2.{HEAD}", "Toy.head"]
    assert {"PeftModel", "Toy"} <= paths(trace)
    assert {cast.path for cast in trace.mismatches()} == set(heads[:2])
    assert "Toy.unused" in trace.never_ran


def test_what_comes_into_a_model_and_around_it_after_its_first_call_is_traced(run):
    _, traces = run(
        """
toy = quantized()
toy(X.bfloat16())                                       # by itself
model = adapted(toy)
model(X)                                                # in a PeftModel
model.base_model.model.head = nn.Sequential(nn.Linear(64, 4, dtype=torch.bfloat16))
model.eval().generate(X)
nn.Sequential(model)(X)                                 # in a module of its own
"""
    )
    (trace,) = traces.values()
    head = f"0.{HEAD}"
    assert paths(trace, "generation") >= {head, f"{head}.0", "0.base_model.model.proj.lora_A.default"}
    assert paths(trace, "training") >= {"", "0", "0.base_model.model.proj", head}
    assert all(path == "" or path.split(".")[0] == "0" for path in paths(trace))


def test_a_refusal_that_ends_the_program_is_told_with_its_place(run):
    result, traces = run("adapted()(X)", "--disable", "*")
    assert result.returncode == 1
    assert "same dtype" in result.stderr
    assert traces["t.json"].error.startswith(f"{HEAD}: ")
    assert traces["t.json"].error_phase == "training"
    assert traces["t.json"].never_ran == ("base_model.model.unused",)
    assert paths(traces["t.json"]) >= {"base_model.model.proj", "base_model.model.norm"}


def test_a_refusal_that_the_program_catches_is_told(run):
    text = "model = quantized().eval()\nfor _ in range(2):\n    try: model(X)\n    except RuntimeError: pass"
    result, traces = run(text)
    (line,) = traces["t.json"].spoken_mismatches()
    assert line.startswith("evaluation: torch refused in head: ")
    assert "head" not in traces["t.json"].never_ran, result.stderr


def test_a_program_is_traced_where_the_shim_is_switched_off(run):
    result, traces = run("step(quantized())", QLORA_BF16_PATCH="off")
    assert traces["t.json"].phases == ("training",), result.stderr
    assert ": 0 patches active; no k-bit model was taken in; trace in t.json" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_process_that_is_killed_has_left_its_trace(run, number):
    result, traces = run(f"step(quantized())\nos.kill(os.getpid(), {int(number)})")
    assert result.returncode == -number
    assert "head" in paths(traces["t.json"])


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_each_process_writes_what_it_ran_itself(run, method):
    text = f"""
import multiprocessing

def child(calls):
    model = quantized()
    for _ in range(calls):
        model(X.bfloat16())

if __name__ == "__main__":
    child(1)
    process = multiprocessing.get_context({method!r}).Process(target=child, args=(3,))
    process.start()
    process.join()
    print(process.pid, process.exitcode)
"""
    result, traces = run(text, OMP_NUM_THREADS="1")
    pid, status = result.stdout.split()
    assert status == "0", result.stderr
    calls = {
        name: sum(n for seen, n in trace.ran.items() if seen.path.endswith("head")) for name, trace in traces.items()
    }
    assert calls == {"t.json": 1, f"t.{pid}.json": 3}
    assert f"process {pid}: " in result.stderr


def test_ranks_have_files_of_their_own(run, tmp_path):
    program = ("torchrun", "--nproc-per-node", "2", "program.py")
    result, traces = run(
        "model = quantized()\nfor _ in range(1 + int(os.environ['RANK'])): model(X.bfloat16())", own=program
    )
    calls = {
        name: sum(n for seen, n in trace.ran.items() if seen.path.endswith("head")) for name, trace in traces.items()
    }
    assert calls == {"t.json": 1, "t.rank1.json": 2}, result.stderr


def test_a_process_that_runs_no_kbit_model_writes_nothing_and_says_so(run):
    result, traces = run("nn.Linear(2, 2)(torch.ones(2))\nquantized()")
    assert not traces
    assert result.stderr.splitlines()[-1].endswith("no k-bit model was seen here; no trace of this process")


def test_a_model_that_is_gone_is_not_kept(run):
    result, _ = run(
        """
for _ in range(2):
    model = quantized()
    step(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    print(gone())
"""
    )
    assert result.stdout == "None\nNone\n", result.stderr


def test_a_compiled_model_is_one_graph_and_warns_of_nothing(run):
    result, _ = run(
        """
warnings.simplefilter("error")
torch._dynamo.config.error_on_recompile = True
model = torch.compile(adapted().eval(), backend="eager", fullgraph=True)
with torch.no_grad():
    print([model(X).dtype for _ in range(2)])
"""
    )
    assert result.stdout == "[torch.float32, torch.float32]\n", result.stderr
    assert "the trace is not whole" not in result.stderr


@pytest.mark.parametrize("first", ["", "model(X.bfloat16())"], ids=["compiled first", "called first"])
def test_modules_that_are_compiled_one_by_one_are_as_many_graphs_as_ever(run, first):
    result, _ = run(
        f"""
torch._dynamo.config.recompile_limit = 2
classes = [type(f"Toy{{number}}", (Toy,), {{}}) for number in range(4)]
for number, cls in enumerate(classes):
    exec(f"def forward(self, x): return self.proj(x) + {{number}}", globals(), found := {{}})
    cls.forward = found["forward"]
model = nn.Sequential(*(cls() for cls in classes)).to("cpu").eval()
with torch.no_grad():
    {first}
    for number, part in enumerate(model):
        model[number] = torch.compile(part, backend="eager", fullgraph=True)
    model(X.bfloat16())
from torch._dynamo.utils import counters
print(counters["stats"]["unique_graphs"])
"""
    )
    assert result.stdout == "4\n", result.stderr


def test_what_cannot_be_looked_at_breaks_nothing_and_is_told(run):
    result, _ = run(
        """
class Locked(tuple):
    def __iter__(self):
        raise ValueError("closed")
class Takes(Toy):
    def forward(self, x, more):
        return super().forward(x)
print(Takes().to("cpu")(X.bfloat16(), Locked()).dtype)
"""
    )
    assert result.stdout == "torch.bfloat16\n", result.stderr
    assert "the trace is not whole: ValueError: closed" in result.stderr.splitlines()[-1]


def test_a_file_that_can_no_longer_be_written_is_told_in_the_last_line(run, script, tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    file = script(MODEL + "os.rmdir('traces')\nquantized()(X.bfloat16())\nprint('ran')")
    result = start(file, options=("--trace", "traces/t.json"), cwd=tmp_path)
    assert (result.stdout, result.returncode) == ("ran\n", 0)
    assert "the trace is not whole: [Errno 2] No such file" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("nowhere/t.json", "there is no folder"),
        ("program.py", "this is no trace, and is left as it is"),
        (".", "this is no trace"),
        ("/dev/null", "this is no trace"),
    ],
)
def test_where_no_trace_can_be_written_nothing_is_started(script, tmp_path, file, told):
    program = script("print('ran')")
    before = program.read_text()
    result = start("program.py", options=("--trace", file), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert program.read_text() == before


def test_the_files_of_an_earlier_run_are_taken_away_and_no_others(tmp_path):
    trace, other = Trace().to_json(), json.dumps({"of": "somebody else"})
    contents = {"t.json": trace, "t.rank1.json": trace, "t.42.json": trace, "t.notes.json": trace, "t.7.json": other}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    assert start("nowhere.py", options=("--trace", tmp_path / "t.json")).returncode == 127
    assert {path.name for path in tmp_path.iterdir()} == set(contents)  # there was no program
    start(sys.executable, "-c", "", options=("--trace", tmp_path / "t.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"t.notes.json", "t.7.json"}
