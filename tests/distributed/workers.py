"""Ray Train's two workers: ``python -m tests.distributed.workers FOLDER NAME`` leaves what ``rank.py`` leaves."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

PASSED_ON = ("QLORA_BF16_PATCH", "PYTHONPATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "SECONDS_OF_A_SCENARIO")


def train(options: dict[str, Any]) -> None:
    """What each worker runs."""
    import qlora_bf16_patch  # isort: skip  # noqa: F401

    import torch.distributed as dist

    from . import rank, story

    rank.quiet()
    faulthandler.dump_traceback_later(rank.SECONDS, exit=True, file=sys.__stderr__)
    folder = Path(options["folder"])
    line = json.dumps([options["name"], story.run(options["name"], folder)])
    (folder / f"{dist.get_rank()}.jsonl").write_text(f"{line}\n")


def main() -> None:
    folder, name = sys.argv[1:]
    variables = {name: os.environ[name] for name in PASSED_ON}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": variables})
    TorchTrainer(
        train,
        train_loop_config={"folder": folder, "name": name},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
        run_config=RunConfig(storage_path=folder),
    ).fit()


if __name__ == "__main__":
    main()
