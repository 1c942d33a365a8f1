"""``python -m qlora_bf16_patch status``, in processes of its own."""

import json
import os
import re
import subprocess
import sys

import pytest

from qlora_bf16_patch.commands import main
from qlora_bf16_patch.patches import CATALOGUE

from .starting import BROKEN, python


def status(**options):
    result = python("-m", "qlora_bf16_patch", "status", "--json", **options)
    assert result.returncode == 0, result.stderr
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_every_patch_has_a_row_and_what_is_on_is_active():
    rows = status()
    assert list(rows) == [patch.name for patch in CATALOGUE]
    for patch in CATALOGUE:
        row = rows[patch.name]
        assert (row["state"], row["decided_by"]) == ("active" if patch.default else "off", "default")
        assert row["version"]
        assert not any("not tested with" in note for note in row["notes"])


def test_the_table_shows_name_state_reason_decider_and_version():
    result = python("-m", "qlora_bf16_patch", "status", QLORA_BF16_PATCH_DISABLE="peft.bound*", COLUMNS="80")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "peft.boundary" in line)
    assert re.split("  +", line)[1:4] == [
        "off",
        "switched off by environment (QLORA_BF16_PATCH_DISABLE)",
        "environment (QLORA_BF16_PATCH_DISABLE)",
    ]


def test_the_help_speaks_to_who_runs_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "See what is patched and in which dtypes a model computes, and start programs" in told
    assert "doctor tells whether the shim works here." in told


def check(**options):
    return python("-m", "qlora_bf16_patch", "status", "--check", **options)


def test_checked_its_exit_status_is_0_only_where_what_is_on_is_in_place(tmp_path):
    result = check()
    assert result.returncode == 0
    assert "qlora-bf16-patch status" not in result.stderr
    assert "peft.boundary" in result.stdout
    result = check(QLORA_BF16_PATCH="off")
    assert result.returncode == 1
    assert "every patch is switched off, by environment (QLORA_BF16_PATCH): nothing is mended" in result.stderr
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(BROKEN)
    result = check(path=tmp_path)
    assert result.returncode == 1
    assert "bitsandbytes.linear4bit is failed: bitsandbytes.nn.modules cannot be imported: OSError" in result.stderr


def test_the_console_script_is_the_same():
    script = os.path.join(os.path.dirname(sys.executable), "qlora-bf16-patch")
    environ = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run([script, "status", "--help"], capture_output=True, text=True, timeout=300, env=environ)
    assert (result.returncode, result.stdout) == (0, python("-m", "qlora_bf16_patch", "status", "--help").stdout)
    assert "usage: qlora-bf16-patch status" in result.stdout


@pytest.mark.parametrize("library", ["bitsandbytes", "peft", "torch"])
def test_a_broken_library_breaks_nothing_and_the_status_says_what_happened(tmp_path, library):
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text(BROKEN)
    rows = status(path=tmp_path)
    broken = [
        row for name, row in rows.items() if library in (name.partition(".")[0], "torch") and row["state"] != "off"
    ]
    assert broken
    for row in broken:
        assert row["state"] == "failed"
        assert "libbitsandbytes.so: cannot open shared object file" in row["reason"]
    script = python(
        "-c", f"import qlora_bf16_patch\ntry:\n    import {library}\nexcept OSError: print('theirs')", path=tmp_path
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "theirs\n", "")


def test_a_library_without_the_target_is_a_failed_row_and_the_script_runs(tmp_path):
    (tmp_path / "bitsandbytes" / "nn").mkdir(parents=True)
    (tmp_path / "bitsandbytes" / "__init__.py").touch()
    (tmp_path / "bitsandbytes" / "nn" / "__init__.py").touch()
    (tmp_path / "bitsandbytes" / "nn" / "modules.py").touch()
    code = """
import qlora_bf16_patch, bitsandbytes.nn.modules
(row,) = (row for row in qlora_bf16_patch.status() if row.name == "bitsandbytes.linear4bit")
print(row.state, row.reason)
"""
    result = python("-c", code, path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("failed bitsandbytes.nn.modules")
    assert "has no Linear4bit.forward" in result.stdout


def test_the_kill_switch_leaves_every_class_alone():
    code = """
import qlora_bf16_patch, bitsandbytes, peft.tuners.lora.bnb
for cls in (bitsandbytes.nn.Linear4bit, peft.tuners.lora.bnb.Linear4bit):
    assert not hasattr(cls.forward, "__wrapped__")
print({row.state for row in qlora_bf16_patch.status()})
"""
    result = python("-c", code, QLORA_BF16_PATCH="off")
    assert (result.stdout, result.returncode) == ("{'off'}\n", 0), result.stderr


def test_a_library_that_was_imported_before_is_told_with_what_to_do():
    code = """
import bitsandbytes, qlora_bf16_patch
for row in qlora_bf16_patch.status():
    print(row.name, row.state, *row.notes)
"""
    (line,) = (x for x in python("-c", code).stdout.splitlines() if x.startswith("bitsandbytes.linear4bit"))
    assert "active" in line
    assert "guard(model)" in line
