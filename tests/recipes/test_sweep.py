"""The sweep itself: what it does with a class that can't be built, what it calls wrong, what it leaves out."""

from __future__ import annotations

import argparse
import inspect
from types import MappingProxyType, SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit

from sweep import __main__ as command
from sweep import diffusion, diffusion_arguments, diffusion_given, given, outputs, probing, results, runs
from sweep.architectures import Architecture, Language
from sweep.families import FAMILIES, classes
from sweep.hub_streams import Output
from sweep.inputs import guesses, with_placeholders
from sweep.results import Run
from sweep.shrinking import shrunk


class Refuses:
    """A configuration class that does not let itself be made small, as one of transformers 5.24."""

    sub_configs = ()
    attribute_map = MappingProxyType({})

    def __init__(self, **sizes):
        if sizes:
            raise ValueError("hidden_size is what it is")

    def to_dict(self):
        return {"hidden_size": 4096}


@pytest.mark.parametrize("kind", [Architecture, Language])
def test_a_configuration_that_refuses_to_shrink_is_out_of_reach_and_the_sweep_goes_on(monkeypatch, kind):
    class Refusing(kind):
        model_class = SimpleNamespace(config_class=Refuses)

    monkeypatch.setitem(runs.TOYS, "Refusing", Refusing("Refusing", "vision", None))
    refused = list(runs.outcomes("Refusing", "kbit", (False, True)))
    assert {run.outcome for run in refused} == {"error"}
    assert all(run.message.startswith("not built: ") and "hidden_size is what it is" in run.message for run in refused)
    (reason,) = results.out_of_reach(refused)["Refusing"].items()
    assert reason[0] == "every recipe: every run"
    assert {run.outcome for run in runs.outcomes("hub.TiedHead", "kbit", (True,))} == {"ok"}


def test_a_class_that_the_installed_version_names_and_does_not_have_is_out_of_reach(monkeypatch):
    monkeypatch.setitem(runs.TOYS, "NoSuchModel", Architecture("NoSuchModel", "bare", None))
    assert all(run.message.startswith("not built: ") for run in runs.outcomes("NoSuchModel", "qlora", (False, True)))


@pytest.mark.parametrize(
    ("unpatched", "patched", "wrong"),
    [
        ({}, {}, False),
        ({"outcome": "mismatch"}, {"outcome": "mismatch"}, True),
        ({}, {"outcome": "error"}, True),
        ({"outcome": "mismatch"}, {"outcome": "error"}, True),
        ({"outcome": "error"}, {"outcome": "error"}, False),
        ({"outcome": "mismatch"}, {"apart": 0.2}, True),
        ({"outcome": "mismatch"}, {"apart": 0.2, "rounding": 0.15}, False),
        ({}, {"same": False, "agreeing": True}, True),
        ({}, {"same": False}, False),
    ],
)
def test_what_is_wrong_is_told_from_the_unpatched_run_and_the_reference(unpatched, patched, wrong):
    one = Run("Some", "kbit", "generate", autocast=False, patched=False, **unpatched)
    other = Run("Some", "kbit", "generate", autocast=False, patched=True, **patched)
    assert bool(list(results.regressions([one, other]))) is wrong


def test_a_reason_that_stands_in_the_way_without_the_patches_too_is_not_wrong():
    fails = {"outcome": "error", "message": "no gradient"}
    unpatched = [
        Run("Some", "kbit", "train", True, False, **fails),
        Run("Some", "kbit", "train", False, False, "mismatch"),
    ]
    patched = [Run("Some", "kbit", "train", autocast, True, **fails) for autocast in (True, False)]
    assert not list(results.regressions(unpatched + patched))
    assert len(list(results.regressions(unpatched[1:] + patched[1:]))) == 1


@pytest.mark.parametrize(("mode", "autocast"), [("train", False), ("train", True), ("generate", True)])
def test_other_bits_are_wrong_in_training_and_under_autocast(mode, autocast):
    pair = [Run("Some", "kbit", mode, autocast, patched, same=False if patched else None) for patched in (False, True)]
    assert len(list(results.regressions(pair))) == 1


def test_every_class_has_one_family_and_the_tables_name_the_tasks_of_transformers():
    found = list(classes())
    assert len({name for name, _, _ in found}) == len(found)
    assert {family for _, family, _ in found} >= {*FAMILIES} - {"other"}


def options(**chosen):
    return argparse.Namespace(**{"families": None, "only": ["*"]} | chosen)


def test_families_and_patterns_select_architectures():
    known = {"LlamaForCausalLM": "language", "ViTModel": "vision", "ViTForImageClassification": "vision"}
    assert command.selected(known, options()) == known
    assert list(command.selected(known, options(families=["vision"], only=["*Model"]))) == ["ViTModel"]
    with pytest.raises(SystemExit, match="unknown families: visions; known are language, vision"):
        command.selected(known, options(families=["visions"]))


def test_what_the_results_hold_already_is_not_run_again(monkeypatch, tmp_path):
    file = tmp_path / "results.jsonl"
    done = [run for run in results.planned("hub.TiedHead", "kbit", (True,))]
    file.write_text("".join(run.to_json() + "\n" for run in done) + '{"architecture": "cut of')
    asked = []

    class Worker:
        def __init__(self, limit):
            pass

        def families(self):
            return {"hub.TiedHead": "hub", "hub.Rotary": "hub"}

        def run(self, name, recipe, sides):
            asked.append((name, recipe))
            return results.planned(name, recipe, sides)

        def stop(self):
            pass

    monkeypatch.setattr(command, "Worker", Worker)
    monkeypatch.setattr("sys.argv", ["sweep", "--resume", "--patched", "--recipes", "kbit", "--results", str(file)])
    assert command.main() == 0
    assert asked == [("hub.Rotary", "kbit")]


def test_lists_of_sizes_keep_their_length_and_other_sizes_follow_the_rules():
    from transformers import SegformerConfig, ViTConfig

    small = shrunk(SegformerConfig, {}, {})
    assert small.depths == [1, 1, 1, 1] and max(small.hidden_sizes) == 64 and max(small.num_attention_heads) == 2
    assert shrunk(ViTConfig, {}, {}).image_size == 64


def test_guesses_are_made_from_the_signature_and_the_configuration():
    config = SimpleNamespace(image_size=[32, 48], num_channels=1, sub_configs={}, image_token_id=300)
    parameters = {"input_ids": True, "pixel_values": False, "attention_mask": False, "labels": False}
    guess = next(guesses(config, "input_ids", parameters))
    assert {name: tuple(value.shape) for name, value in guess.items()} == {
        "input_ids": (2, 12),
        "attention_mask": (2, 12),
        "pixel_values": (2, 1, 32, 48),
    }
    placed = with_placeholders(guess, config, "image", 10, parameters)
    assert ((placed["input_ids"] == 300).sum(1) == 5).all() and placed["attention_mask"].shape == (2, 17)


@pytest.mark.parametrize("form", [tuple, lambda pair: {"a": [pair[0]]}, lambda pair: Output(pair[1], pair[0])])
def test_logits_are_found_or_the_first_floating_tensor_of_any_output_stands_for_them(form):
    pair = torch.randn(2, 3, requires_grad=True), torch.randn(2, 5)
    assert outputs.logits(form(pair)) is pair[0]
    outputs.loss(form(pair)).backward()
    assert pair[0].grad.abs().sum() > 0


def test_an_output_of_bytes_is_no_output():
    with pytest.raises(ValueError, match="uint8") as raised:
        outputs.logits(torch.zeros(2, 3, dtype=torch.uint8))
    assert runs.MISMATCH.search(str(raised.value))


def parameters(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize("name", [name for name in given.GIVEN if hasattr(transformers, name)])
def test_what_a_class_of_transformers_is_given_are_parameters_of_its_forward(name):
    assert given.GIVEN[name].keys() <= parameters(getattr(transformers, name).forward).keys()


@pytest.mark.parametrize("name", sorted({*diffusion_arguments.ARGUMENTS, *diffusion_given.GIVEN} & {*dir(diffusers)}))
def test_what_a_class_of_diffusers_is_given_are_parameters_of_its_init_and_its_forward(name):
    model_class = getattr(diffusers, name)
    assert diffusion_arguments.ARGUMENTS.get(name, {}).keys() <= parameters(model_class.__init__).keys()
    assert diffusion_given.GIVEN.get(name, {}).keys() <= parameters(model_class.forward).keys()


def test_a_guess_has_what_is_given_and_none_has_what_is_given_as_none():
    config = SimpleNamespace(image_size=32, sub_configs={})
    known = {"input_ids": True, "pixel_values": True, "attention_mask": False}
    fixed = {"input_ids": torch.ones(2, 4).long(), "pixel_values": None}
    for guess in guesses(config, "input_ids", known, fixed):
        assert guess.keys() == {"input_ids", "attention_mask"}
        assert guess["input_ids"] is fixed["input_ids"] and guess["attention_mask"].shape == (2, 4)


def test_a_class_with_no_forward_is_out_of_reach():
    class Parts(torch.nn.Module):
        config_class = None

    with pytest.raises(probing.OutOfReach, match="no forward"):
        probing.probed(Parts, {})


class Borrowing(torch.nn.Module):
    """Multiplies with the weight of a layer that it does not call, as torch's multi-head attention does."""

    def __init__(self):
        super().__init__()
        self.called, self.borrowed, self.named = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden_states):
        return self.called(hidden_states) @ self.borrowed.weight + self.named(hidden_states)


def test_layers_that_are_not_called_or_that_the_table_names_are_not_in_4_bits(monkeypatch):
    monkeypatch.setitem(diffusion.KEPT, "Borrowing", "named")
    toy = diffusion.Diffuser("Borrowing", "diffusers", lambda: (Borrowing, {"hidden_states": torch.randn(2, 8)}))
    model = toy.quantized(torch.bfloat16)
    assert {name for name, module in model.named_modules() if isinstance(module, Linear4bit)} == {"called"}


def test_a_class_of_diffusers_that_is_left_out_says_why(monkeypatch):
    monkeypatch.setitem(diffusion.LEFT_OUT, "UNet2DModel", "it is left out here")
    (toy,) = (toy for toy in diffusion.toys() if toy.name == "UNet2DModel")
    with pytest.raises(probing.OutOfReach, match="it is left out here"):
        _ = toy.probe
