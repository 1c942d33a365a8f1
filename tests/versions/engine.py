"""``python -m tests.versions.engine``: the engine's tests with the wrapt that is installed here, with and without its
extension in C, as lines of ``docs/versions/engine.json``. They need no torch."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

from .counting import counted
from .processes import RECORDS, last_line, run

RECORD = RECORDS / "engine.json"
# The folder's own fixtures; those of all tests import bitsandbytes.
TESTS = ("--confcutdir=tests/engine", "tests/engine")
WITHOUT = "WRAPT_DISABLE_EXTENSIONS"


def main() -> int:
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for environ in ({WITHOUT: ""}, {WITHOUT: "true"}):
        row = {"python": platform.python_version(), "wrapt": version("wrapt"), "extension": has_extension(**environ)}
        rows = [old for old in rows if old | row != old]  # a second one where no extension could be built
        rows.append(row | counted(*TESTS, minutes=10, **environ))
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")
        print(*rows[-1].values(), flush=True)
    return 0


def has_extension(**environ: str) -> bool:
    result = run("-c", "import sys, wrapt; print('wrapt._wrappers' in sys.modules)", **environ)
    return last_line(result.stdout) == "True"


if __name__ == "__main__":
    sys.exit(main())
