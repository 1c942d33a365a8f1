"""AssertDtypes in transformers' Trainer."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import qlora_bf16_patch
from qlora_bf16_patch.inspection import AssertDtypes, DtypeAssertionError
from qlora_bf16_patch.inspection.casts import Casts
from qlora_bf16_patch.watching import events
from toys.models import lora_model
from toys.trainer import GenerateAfterStep, prepared

BF16, F32 = torch.bfloat16, torch.float32
# Third parties about each other, as in test_trainer.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Steps(TrainerCallback):
    """What was begun."""

    def __init__(self):
        self.begun = 0

    def on_step_begin(self, *_, **kwargs):
        self.begun += 1


@pytest.fixture
def model():
    return prepared(BF16)


def trainer_of(model, folder, *callbacks, **options):
    ids = [torch.arange(3, 15) for _ in range(4)]
    data = [{"input_ids": i, "labels": i.clone()} for i in ids]
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "bf16": True} | options
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **options
    )
    return Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data[:1], callbacks=[Steps(), *callbacks]
    )


def steps(trainer):
    return next(one.begun for one in trainer.callback_handler.callbacks if isinstance(one, Steps))


def test_a_training_that_is_as_asserted_runs_to_its_end(model, tmp_path):
    asserts = AssertDtypes({"*norm*": F32}, compute=BF16, adapters=BF16, every=1)
    trainer = trainer_of(model, tmp_path, asserts, eval_strategy="steps", eval_steps=2)
    trainer.train()
    trainer.evaluate()
    assert steps(trainer) == 4


def test_other_dtypes_fail_before_the_first_step_with_the_shim_and_without(model, tmp_path):
    for patched in (True, False):
        trainer = trainer_of(model, tmp_path, AssertDtypes({"*norm*": BF16}))
        with qlora_bf16_patch.enabled() if patched else qlora_bf16_patch.disabled():
            with pytest.raises(DtypeAssertionError, match=r"layers.0.input_layernorm .*weight is float32"):
                trainer.train()
        assert steps(trainer) == 0


@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_what_a_generate_in_another_callback_casts_fails_at_the_next_look(model, tmp_path, order):
    trainer = trainer_of(model, tmp_path, *[GenerateAfterStep(), AssertDtypes(every=2)][::order])
    said = r"(?s)since step 0, where.*lm_head: linear has its input cast from float32 to bfloat16 by peft.boundary"
    with pytest.raises(DtypeAssertionError, match=said):
        trainer.train()
    assert steps(trainer) == 3


def test_the_last_look_is_at_the_end(model, tmp_path):
    trainer = trainer_of(model, tmp_path, GenerateAfterStep(), AssertDtypes())
    with pytest.raises(DtypeAssertionError, match="since step 0, where"):
        trainer.train()
    assert steps(trainer) == 4


def test_casts_may_be_allowed(model, tmp_path):
    trainer = trainer_of(model, tmp_path, GenerateAfterStep(), AssertDtypes(allow_casts=True, every=1))
    trainer.train()
    assert steps(trainer) == 4


def test_an_evaluation_that_casts_fails(model, tmp_path):
    trainer = trainer_of(model, tmp_path, AssertDtypes(), bf16=False)
    with pytest.raises(DtypeAssertionError, match=r"since the Trainer was made, where.*\n.*lm_head"):
        trainer.evaluate()
    with torch.autocast("cpu", BF16):
        trainer.evaluate()  # what was told is not told again
    trainer = trainer_of(model, tmp_path, AssertDtypes(), bf16=False)
    with pytest.raises(DtypeAssertionError, match="lm_head"):
        trainer.predict(trainer.eval_dataset)


def test_one_that_is_added_later_sees_all_but_the_first_batch(model, tmp_path):
    trainer = trainer_of(model, tmp_path, bf16=False, per_device_eval_batch_size=1)
    trainer.add_callback(AssertDtypes())
    trainer.evaluate()
    with pytest.raises(DtypeAssertionError):
        trainer.evaluate(trainer.train_dataset)


def test_a_dtype_that_changes_on_the_way_fails_at_the_next_look(model, tmp_path):
    class Casts(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.get_base_model().model.norm.to(BF16)

    trainer = trainer_of(model, tmp_path, Casts(), AssertDtypes({"norm": F32}, every=3))
    with pytest.raises(DtypeAssertionError, match=r"norm .*weight is bfloat16, not float32"):
        trainer.train()


def test_a_run_that_was_cut_off_leaves_nothing_that_listens(model, tmp_path):
    asserts = AssertDtypes()
    trainer = trainer_of(model, tmp_path, asserts, bf16=False)
    assert events.listeners
    with qlora_bf16_patch.disabled(), pytest.raises(RuntimeError, match="dtype"):
        trainer.train()
    held = weakref.ref(asserts)
    del trainer, asserts
    gc.collect()
    assert held() is None
    assert not events.listeners


def test_a_number_of_steps_that_is_none_is_told():
    with pytest.raises(ValueError, match="every=0"):
        AssertDtypes(every=0)
    with pytest.raises(AttributeError, match="no attribute 'Assert'"):
        qlora_bf16_patch.inspection.Assert  # noqa: B018


class AState:
    global_step = 0


def test_a_number_of_a_module_that_is_gone_is_no_place_of_it():
    model = lora_model()
    casts = Casts(model)
    assert casts._paths
    del model
    gc.collect()
    assert not casts._paths  # else another model's module with such a number would be taken for it


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_listens_anew(copied):
    model, asserts = lora_model(), AssertDtypes()
    asserts.on_init_end(None, None, None, model=model)
    other = copied(asserts)
    other.on_prediction_step(None, AState, None, model=model)
    model(torch.randn(2, 64))
    with pytest.raises(DtypeAssertionError):
        other.on_evaluate(None, AState, None, model=model)
