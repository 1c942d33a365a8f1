"""transformers' Trainer under ``torchrun``, with ``generate()`` in a callback: the report, by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from .story import PROMPT, hashed, qlora

STEPS = 3


class GenerateAfterStep(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.generations: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses += [logs[name] for name in ("loss", "eval_loss") if name in logs]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.eval()
        try:
            with torch.no_grad():
                # >>>
                tokens = model.generate(input_ids=PROMPT, max_new_tokens=4, do_sample=False)
                # <<<
            self.generations.append({"value": tokens[0].tolist()})
        except RuntimeError as error:
            self.generations.append({"error": str(error).splitlines()[0]})
        model.train()


def run(folder: Path) -> dict[str, Any]:
    """As ``story.run``; the losses are the ranks' mean, and the last one is an evaluation's, under autocast."""
    arguments = TrainingArguments(
        output_dir=str(folder / "output"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        bf16=True,
        use_cpu=True,
        ddp_backend="gloo",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model: Any = qlora(folder)
    ids = torch.randint(5, 100, (4 * STEPS, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    callback = GenerateAfterStep()
    # >>>
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.train()
    # <<<
    trainer.evaluate()
    state = model.state_dict()
    adapters = {name: value for name, value in state.items() if "lora_" in name}
    return {
        "losses": callback.losses,
        "state dict": hashed(state),
        "entries": len(state),
        "adapters": hashed(adapters),
        "shards": hashed(state),
        "generations": callback.generations,
        "generation": callback.generations[-1],
    }
