"""A user's type checker sees the types of the installed package."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import qlora_bf16_patch
from qlora_bf16_patch import inspection

from .packages import unpacked

PROGRAM = Path(__file__).with_name("user.py")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A Python in which the wheel is installed, beside the libraries of this one."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site_packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    unpacked(wheel, site_packages)
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def test_a_users_program_is_checked_strictly(python, request):
    # Elsewhere, since mypy takes the folder around a program's own packages for a place of sources.
    program = shutil.copy(PROGRAM, python.parent)
    cache = request.config.cache.mkdir("mypy")
    options = ["--strict", "--python-executable", python, "--cache-dir", cache, "--config-file", ""]
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", *options, program]
    checked = subprocess.run(command, cwd=python.parent, capture_output=True, text=True, env=environ)
    assert checked.stdout == "Success: no issues found in 1 source file\n", checked.stdout + checked.stderr


def test_the_program_has_every_public_name():
    nodes = [*ast.walk(ast.parse(PROGRAM.read_text()))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert {*qlora_bf16_patch.__all__, *inspection.__all__} <= names
