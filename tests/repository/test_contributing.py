"""The patch of docs/extending.md does as it says, as a third party's and as one of ours; SECURITY.md's door is shut."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from .packages import ROOT, build, unpacked

# Files of the example are blocks whose first line is a path; a part of one says where it belongs.
FILE = re.compile(r"^```(?:python|toml)\n# (\S+\.\w+)(?:, in \w+)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEXT = (ROOT / "docs/extending.md").read_text()
OURS = (ROOT / "CONTRIBUTING.md").read_text()
MODULE = "kbit_embeddings.embedding4bit"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Where the document's package is installed, and its tests."""
    folder = tmp_path_factory.mktemp("example")
    for name, text in FILE.findall(TEXT):
        file = folder / ("tested" if name.startswith("tests/") else "source") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    wheel = build("wheel", folder / "source", folder / "wheel")
    return unpacked(wheel, folder / "installed"), folder / "tested"


def python(example, *arguments, **environ):
    installed, tests = example
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]), **environ}
    return subprocess.run([sys.executable, *arguments], cwd=tests, capture_output=True, text=True, env=environ)


def told(result):
    """Pytest's failures and its counts, as the document has them; warnings are torch's own."""
    lines = re.findall(r"^(FAILED \S+|\d+ .*?)(?: - .*|(?:, \d+ warnings)? in .*)?$", result.stdout, re.MULTILINE)
    return [f"    {line}" for line in lines]


@pytest.mark.parametrize("disabled", ["", "kbit_embeddings.*"])
def test_the_example_is_tested_as_the_document_shows(example, disabled):
    result = python(example, "-m", "pytest", "-q", QLORA_BF16_PATCH_DISABLE=disabled)
    command = "pip install . && pytest -q" if not disabled else f"QLORA_BF16_PATCH_DISABLE='{disabled}' pytest -q"
    assert "\n".join([f"    $ {command}", *told(result)]) in TEXT, result.stdout


def test_the_defect_is_there_as_the_document_shows(example):
    code, expected = re.search(r"^```pycon\n(.*?)^(\(.*?)$", TEXT, re.MULTILINE | re.DOTALL).groups()
    first, second = [line.removeprefix(">>> ") for line in code.splitlines()]
    program = f"import torch\nfrom bitsandbytes.nn import Embedding4bit\n{first}\nprint(({second}))"
    assert python(example, "-c", program).stdout == f"{expected}\n"


DOOR = """
import sys, qlora_bf16_patch
print("kbit_embeddings" in sys.modules, [row.state for row in qlora_bf16_patch.status() if row.name == {!r}])
"""


@pytest.mark.parametrize(
    ("environ", "printed"),
    [
        ({}, "True ['pending']"),
        ({"QLORA_BF16_PATCH": "off"}, "False []"),
        ({"QLORA_BF16_PATCH_DISABLE": "kbit_embeddings.*"}, "True ['off']"),
        ({"QLORA_BF16_PATCH": "peft.boundary"}, "True ['off']"),
    ],
    ids=["open", "kill switch", "disabled", "others are named"],
)
def test_the_door_for_foreign_code_is_shut_by_the_kill_switch_alone(example, environ, printed):
    assert python(example, "-c", DOOR.format(MODULE), **environ).stdout == f"{printed}\n"


ASKED = """
import bitsandbytes, qlora_bf16_patch
from qlora_bf16_patch.doctor.needed import answers, sentence
from qlora_bf16_patch.patches import CATALOGUE
patch = next(patch for patch in CATALOGUE if patch.name == "bitsandbytes.embedding4bit")
row = next(row for row in qlora_bf16_patch.status() if row.name == patch.name)
print(f"{row.name}: {row.state}: {row.reason}")
print(sentence(patch, row.version, answers(patch)))
"""


def words(text):
    """As they stand in any line, with any release of the library."""
    return re.sub(r"bitsandbytes [\d.]+", "bitsandbytes X", " ".join(text.split()))


def test_it_becomes_one_of_ours_as_contributing_tells(tmp_path):
    shutil.copytree(ROOT / "qlora_bf16_patch", tmp_path / "qlora_bf16_patch")
    files = dict(FILE.findall(OURS))
    files["qlora_bf16_patch/patches/embedding4bit.py"] = dict(FILE.findall(TEXT))["kbit_embeddings/embedding4bit.py"]
    catalogue = tmp_path / "qlora_bf16_patch/patches/__init__.py"
    place = "CATALOGUE: tuple[Patch, ...] = (\n"
    before = catalogue.read_text()
    assert place in before
    files["qlora_bf16_patch/patches/__init__.py"] = before.replace(
        place, place + files[catalogue.relative_to(tmp_path).as_posix()]
    )
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    result = python((tmp_path, tmp_path), "-c", ASKED)
    assert result.stdout.count("\n") == 2, result.stderr
    assert words(result.stdout) in words(OURS), result.stdout
