"""One token under this checkout and under another: ``python -m benchmarks.against CHECKOUT [--rounds 60]``.

Two processes take turns, so that what else the machine does falls on both. The models are this checkout's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_READY = "ready"
_CALLS = 4  # of one turn
# Run in the other checkout's process: its package is imported first, and then this checkout's models.
_WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
checkout, here, shape, recipe, calls = sys.argv[1:]
sys.path.insert(0, checkout)
import qlora_bf16_patch
assert qlora_bf16_patch.__file__.startswith(checkout), qlora_bf16_patch.__file__
sys.path[0] = here
import torch
torch.set_num_threads(1)
from benchmarks import rows
from benchmarks.measure import clocked
from toys import llama
torch.manual_seed(0)
run = rows.one_token(llama.llama(getattr(llama, shape), recipe).eval())
run(), run()
print(_READY, flush=True)
for _ in sys.stdin:
    run()
    print(_READY, clocked(run, int(calls)), flush=True)
""".replace("_READY", repr(_READY))


class Checkout:
    """A process that measures under one checkout of the package."""

    def __init__(self, checkout: Path, shape: str, recipe: str) -> None:
        arguments = [str(checkout), str(HERE), shape, recipe, str(_CALLS)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        self._answer()

    def seconds(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == _READY:
                return rest
        raise SystemExit("a measuring process ended; what it said stands above")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.against", description=__doc__)
    parser.add_argument("checkout", type=Path, help="another one of the package")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--recipes", nargs="+", default=["qlora"], help="see toys/llama.py")
    options = parser.parse_args()
    for shape in ("DEEP", "SMALL"):
        for recipe in options.recipes:
            theirs, ours = (Checkout(path, shape, recipe) for path in (options.checkout.resolve(), HERE))
            ratios = []
            for turn in range(options.rounds):
                order = (theirs, ours) if turn % 2 else (ours, theirs)
                seconds = {side: side.seconds() for side in order}
                ratios.append(seconds[ours] / seconds[theirs])
            low, median, high = statistics.quantiles(ratios, n=4)
            print(f"one token, {recipe}, {shape}: {median:.3f} of the other's time (quartiles {low:.3f} to {high:.3f})")
            theirs.stop(), ours.stop()


if __name__ == "__main__":
    main()
