"""``python -m tests.versions.engine``: the engine's tests with the wrapt that is installed here, with and without its
extension in C, as lines of ``docs/versions/engine.json``. They need no torch."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from qlora_bf16_patch.patches.versions import FLOORS

from .counting import counted
from .processes import RECORDS, last_line, run

RECORD = RECORDS / "engine.json"
# The folder's own fixtures; those of all tests import bitsandbytes.
TESTS = ("--confcutdir=tests/engine", "tests/engine")
WITHOUT = "WRAPT_DISABLE_EXTENSIONS"


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail where the tests do with a wrapt that is asked for"
    )
    check = parser.parse_args().check
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for environ in ({WITHOUT: ""}, {WITHOUT: "true"}):
        row = {"python": platform.python_version(), "wrapt": version("wrapt"), "extension": has_extension(**environ)}
        rows = [old for old in rows if old | row != old]  # a second one where no extension could be built
        rows.append(row | counted(*TESTS, minutes=10, **environ))
        print(*rows[-1].values(), flush=True)
        if not check:
            RECORD.write_text(json.dumps(rows, indent=1) + "\n")
        elif Version(row["wrapt"]) >= Version(FLOORS["wrapt"]) and rows[-1].get("failed") != 0:
            return 1
    return 0


def has_extension(**environ: str) -> bool:
    result = run("-c", "import sys, wrapt; print('wrapt._wrappers' in sys.modules)", **environ)
    return last_line(result.stdout) == "True"


if __name__ == "__main__":
    sys.exit(main())
