"""``python -m tests.programs.record <program>``: the program, unmodified, without and with the shim, as one JSON file.

Run by the program's own environment. Each run is a process in a folder of its own; what it computes it tells itself,
see ``observed/observed.py``. The reference is a run without the shim whose ``generate()`` is under autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from tests.versions.processes import ROOT, about, told
from toys.programs import make

from .observed.observed import AUTOCAST, FILE
from .settings import PROGRAMS, TOY, Setting

HERE = Path(__file__).parent
RECORDS = ROOT / "docs" / "programs"
# One line, `import qlora_bf16_patch`, which Python runs at its start: what a user of an unmodified program has.
SWITCHED_ON = HERE / "switched_on"
SIDES: dict[str, dict[str, str]] = {
    "off": {},
    "on": {"PYTHONPATH": str(SWITCHED_ON), "QLORA_BF16_PATCH_LOG": "info"},
    "reference": {AUTOCAST: "1"},
}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
LIBRARIES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "wrapt"),
    *("trl", "datasets", "llamafactory", "ms-swift", "lm-eval", "tokenizers", "numpy"),
)
MINUTES = 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="record", description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--only", nargs="+", help="settings; the others stay as recorded")
    options = parser.parse_args()
    file = RECORDS / f"{options.program}.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() and options.only else {"settings": {}}
    settings, recorded = PROGRAMS[options.program], record.pop("settings")
    record |= {"program": options.program, **about(*LIBRARIES), "commit": commit()}
    observe_every_start()
    RECORDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, TOY))
        for name in settings:
            if options.only and name not in options.only:
                continue
            recorded[name] = found = sides(settings[name], Path(folder))
            record["settings"] = {one: recorded[one] for one in settings if one in recorded}
            file.write_text(json.dumps(record, indent=1) + "\n")  # an interruption loses one setting
            for side in found:
                if side in SIDES:
                    print(f"{options.program}: {name}: {side}: {found[side]['outcome']}", flush=True)
    return 0


def commit() -> str:
    """The last one that changed the package."""
    command = ["git", "log", "-1", "--format=%h", "--", "qlora_bf16_patch"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def observe_every_start() -> None:
    """Of this environment's Python."""
    Path(sysconfig.get_path("purelib"), "observed.pth").write_text(f"{HERE / 'observed'}\nimport observed\n")


def sides(setting: Setting, folder: Path) -> dict[str, Any]:
    """The setting without and with the shim, and generation's reference where it generates."""
    found: dict[str, Any] = {"command": " ".join(setting.command).replace(f"{ROOT}/", "")}
    found |= {"switched on by": " ".join(setting.door)} if setting.door else {}
    found |= {"files": dict(setting.files)} if setting.files else {}
    found |= {"why": setting.why} if setting.why else {}
    for side, environ in SIDES.items():
        if side == "reference" and not any("generated" in found[one] for one in ("off", "on")):
            break
        if side == "on" and setting.door:
            environ = {name: value for name, value in environ.items() if name != "PYTHONPATH"}
        found[side] = run(setting, environ, folder, setting.door if side == "on" else ())
    return found


def run(setting: Setting, environ: dict[str, str], folder: Path, door: tuple[str, ...] = ()) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        Path(own, TOY).symlink_to(folder / TOY)
        for name, text in setting.files.items():
            Path(own, name).write_text(text)
        observed = Path(own, "observed.jsonl")
        environ = QUIET | environ | setting.environ | {FILE: str(observed)}
        result = process((*setting.command, *door), environ, own)
        events = [json.loads(line) for line in observed.read_text().splitlines()] if observed.exists() else []
        return outcome(result) | read(events, Path(own, TOY)) | results(Path(own))


def process(command: tuple[str, ...], environ: dict[str, str], folder: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = command
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "QLORA_BF16_PATCH"))}
    path = os.pathsep.join([sysconfig.get_path("scripts"), kept["PATH"]])
    try:
        return subprocess.run(
            [str(Path(sysconfig.get_path("scripts"), program)), *arguments],
            cwd=folder,
            env=kept | {"PATH": path} | environ,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MINUTES * 60,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return subprocess.CompletedProcess(expired.cmd, 124, "", f"TimeoutError: no end in {MINUTES} minutes")


def outcome(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """``done``, or the error."""
    if result.returncode == 0:
        return {"outcome": "done"}
    errors = re.findall(r"^\W*((?:\w+\.)*\w*(?:Error|Exception|Exit)\b.*)", result.stderr, re.MULTILINE)
    # A launcher's, of its child
    own = [line for line in errors if not re.match(r"\S*(CalledProcessError|ChildFailedError)", line)]
    last = (result.stderr.strip() or "no output").splitlines()[-1]
    return {"outcome": told(own[-1] if own else last)}


def read(events: list[dict[str, Any]], toy: Path) -> dict[str, Any]:
    """What a run told of itself: losses and logs with all their bits, the generated text, the shim's state."""
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(toy / "model" / "tokenizer.json"))
    found: dict[str, Any] = {}
    # A launcher has a state as well, and ends last.
    at_work = {event["pid"] for event in events if event["event"] in ("loss", "generate")}
    for event in events:
        kind, pid = event.pop("event"), event.pop("pid")
        if kind == "loss":
            found.setdefault("losses", []).append(event["value"])
        elif kind == "log":
            found.setdefault("logs", []).append(event)
        elif kind == "generate":
            found.setdefault("generated", []).append(
                {"under autocast": event["autocast"]}
                | (
                    {"error": told(event["error"])}
                    if "error" in event
                    else {"text": words.decode_batch(event["tokens"])}
                )
            )
        elif kind == "status" and (pid in at_work or not at_work):
            rows = event["rows"]
            found["states"] = {row["name"]: row["state"] for row in rows}
            found["notes"] = [f"{row['name']}: {note}" for row in rows for note in row["notes"]]
    return found


def results(folder: Path) -> dict[str, Any]:
    """What lm_eval writes: each answer, and of each choice the log-likelihood."""
    answers = {}
    for file in sorted(folder.glob("out/**/samples_*.jsonl")):
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        answers[task] = [json.loads(line)["resps"] for line in file.read_text().splitlines()]
    return {"answers": answers} if answers else {}


if __name__ == "__main__":
    sys.exit(main())
