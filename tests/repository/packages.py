"""What git tracks, and the packages that are built of it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qlora_bf16_patch

ROOT = Path(qlora_bf16_patch.__file__).parents[1]


def tracked(*paths):
    """The files that git tracks, as paths from the repository's root."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("what belongs into a package is asked of git, and this is no clone")
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if (ROOT / name).is_file() and name}


def build(what, source, folder):
    """Call the hook of PEP 517 that ``what`` names, in a process where the package cannot be imported."""
    folder.mkdir()
    code = f"from setuptools import build_meta; print(build_meta.build_{what}({str(folder)!r}))"
    environ = {**os.environ, "QLORA_BF16_PATCH_DISABLE": "no.such_patch"}  # an import is an error
    environ.pop("PYTHONPATH", None)
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, env=environ)
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.split()[-1]


def unpacked(wheel, folder):
    """A folder with what pip would put into ``site-packages``."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder
