"""``AssertDtypes``: a callback of transformers' Trainer that asserts dtypes while it trains and evaluates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from ..hosts.transformers import TrainerCallback
from .assertions import check, refuse_casts
from .casts import Casts, listen_for
from .expected import Wanted


class AssertDtypes(TrainerCallback):
    """Asserts the dtypes of the model at the start, every so many steps, after each evaluation and at the end.

    With them it asserts that nothing was cast in the model since the last look, where torch would have raised: in
    training, in evaluation, or in what other callbacks do, as a ``generate``. Give it to the Trainer with
    ``callbacks=[...]``; one that is added later sees of an evaluation that stands alone all but its first batch.

    Args:
        dtypes: as of ``qlora_bf16_patch.assert_dtypes``, and so are the next ones.
        compute: that 4-bit layers compute in.
        adapters: of adapters' parameters.
        allow_casts: whether the shim may cast.
        every: how many optimizer steps lie between two looks.

    Raises:
        DtypeAssertionError: in ``Trainer.train`` or ``Trainer.evaluate``; the last look comes before a script can save.
        ValueError: ``every`` is no positive number; or from the start of the training, as ``assert_dtypes`` raises it.

    Source:
        ``TrainerCallback`` (transformers/trainer_callback.py), which says when each of the methods is called.

    Examples:
        >>> from transformers import Trainer, TrainingArguments
        >>> from qlora_bf16_patch.inspection import AssertDtypes
        >>> trainer = Trainer(
        ...     model,
        ...     TrainingArguments("out", max_steps=1, report_to=[], use_cpu=True, save_strategy="no"),
        ...     train_dataset=[{"input_ids": input_ids[0], "labels": input_ids[0]}],
        ...     callbacks=[AssertDtypes({"*norm": torch.bfloat16}, every=10)],
        ... )
        >>> trainer.train()
        Traceback (most recent call last):
            ...
        qlora_bf16_patch.inspection.assertions.DtypeAssertionError: PeftModelForCausalLM has other dtypes than was
        asserted:
          base_model.model.model.layers.[0-1].input_layernorm (LlamaRMSNorm): weight is float32, not bfloat16, as
          '*norm' asks, in 2 modules
          base_model.model.model.layers.[0-1].post_attention_layernorm (LlamaRMSNorm): weight is float32, not bfloat16,
          as '*norm' asks, in 2 modules
          base_model.model.model.norm (LlamaRMSNorm): weight is float32, not bfloat16, as '*norm' asks
        Load the model with `dtype=torch.bfloat16`, or cast the module after that, `module.to(torch.bfloat16)`;
        prepare_model_for_kbit_training makes all that is not packed float32.
    """

    def __init__(
        self,
        dtypes: Mapping[str, Wanted] | None = None,
        *,
        compute: Wanted | None = None,
        adapters: Wanted | None = None,
        allow_casts: bool = False,
        every: int = 50,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: give the number of steps between two looks, 1 or more.")
        self._expected = dtypes, compute, adapters
        self._allow_casts, self._every = allow_casts, every
        self._casts: Casts | None = None
        self._since = "since the Trainer was made"

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle listens anew, where its Trainer begins."""
        return {**self.__dict__, "_casts": None}

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._listen(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._listen(model)
        self._look(model, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # Not at a step's end: there, callbacks that come after this one have not done theirs yet.
        if state.global_step % self._every == 0:
            self._look(model, state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._casts is None:
            self._listen(model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(model, state)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(model, state)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(model, state)

    def _listen(self, model: torch.nn.Module) -> None:
        self._casts = Casts(model)
        listen_for(self._casts)

    def _look(self, model: torch.nn.Module, state: Any) -> None:
        check(model, *self._expected)
        since, self._since = self._since, f"since step {state.global_step}"
        if self._casts is not None:
            casts, self._casts.seen = self._casts.seen, Counter()
            if not self._allow_casts:
                refuse_casts(casts, model, since)
