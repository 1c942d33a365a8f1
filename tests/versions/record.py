"""``python -m tests.versions.record <stack>``: what the shim does on the releases installed here, as one JSON file.

Everything runs in processes of its own, since a user's does: the status, the reported failure, the contracts' tests,
and a selection of the sweep.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from .contracts import compiled, contracts, toggles
from .held import complaints
from .page import PARTS, parts_of
from .processes import RECORDS, about, last_line, run, told
from .reference import TOLD
from .selection import swept

LIBRARIES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "wrapt"),
    *("tokenizers", "huggingface_hub", "numpy", "pytest"),
)
FAILURE = "examples/generate_in_callback.py"


def main() -> int:
    parser = argparse.ArgumentParser(prog="record", description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts; the others stay as recorded")
    parser.add_argument("--contracts", nargs="+", help="files of the contracts' tests; all, if left out")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail where the shim does something wrong"
    )
    options = parser.parse_args()
    file = RECORDS / f"{options.stack}.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not options.check else {}
    record |= {"stack": options.stack, **about(*LIBRARIES)}
    if Version(version("bitsandbytes")) < Version("0.46"):
        record["operators"] = TOLD
    layers = functools.partial(contracts, options.contracts)
    record_part = dict(zip(PARTS, (status, failure, layers, toggles, compiled, swept), strict=True))
    RECORDS.mkdir(exist_ok=True)
    for name in options.only or parts_of(options.stack):
        record[name] = record_part[name]()
        if not options.check:
            file.write_text(json.dumps(record, indent=1) + "\n")  # an interruption loses one part
        print(options.stack, name, summary(record[name]), flush=True)
    wrong = [*complaints(record)]
    print(*(f"{options.stack}: {line}" for line in wrong), sep="\n", end="\n" * bool(wrong))
    return int(options.check and bool(wrong))


def status() -> list[dict[str, Any]]:
    """Of each patch its state, the reason and its notes."""
    result = run("-m", "qlora_bf16_patch", "status", "--json")
    if result.returncode:
        return [{"name": "status", "state": "failed", "reason": last_line(result.stderr)}]
    return [
        {name: row[name] for name in ("name", "state", "reason", "version", "notes")}
        for row in json.loads(result.stdout)
    ]


def failure() -> dict[str, Any]:
    """The reported failure, without and with the shim, and in fp16, where the same script runs without."""
    return {
        f"{precision} {'on' if shim else 'off'}": outcome(precision, *shim)
        for precision in ("bf16", "fp16")
        for shim in ([], ["--shim"])
    }


def outcome(*arguments: str) -> dict[str, Any]:
    result = run("-m", "tests.versions.older", FAILURE, *arguments)
    steps = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    generated = sum("generated" in line for line in steps)
    found: dict[str, Any] = {"steps": len(steps), "generated": generated}
    if failures := [line.partition(": ")[2] for line in steps if "generated" not in line]:
        found["error"] = told(failures[0])
    elif result.returncode or len(steps) != 3:
        found["error"] = f"ended before its last step: {last_line(result.stderr)}"
    return found


def summary(part: Any) -> str:
    return json.dumps(part)[:200]


if __name__ == "__main__":
    sys.exit(main())
