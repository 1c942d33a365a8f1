"""``make matrix``, ``torch``, ``engine``, ``engines``, ``programs``: what the shim does elsewhere is recorded.

``package`` builds it. Each has an environment of its own.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import nox
import tomllib

ROOT = Path(__file__).parent
STACKS = tomllib.loads((ROOT / "tests/versions/stacks.toml").read_text())
DEFAULTS, ENGINE = STACKS.pop("defaults"), STACKS.pop("engine")
PROGRAMS = tomllib.loads((ROOT / "tests/programs/programs.toml").read_text())
CONSTRAINTS = PROGRAMS.pop("defaults")["constraints"]
# The libraries that are patched, and what the tests and the sweep import.
INSTALLED = ("transformers", "peft", "bitsandbytes", "accelerate")
TOOLS = ("expecttest", "hypothesis", "pytest", "rich", "scipy", "sentencepiece")
ENGINES = ("deepspeed", "lightning-fabric", "ray[train]")
NO_KERNELS = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}  # DeepSpeed compiles nothing

nox.options.envdir = ".venv/matrix"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"


@nox.session
@nox.parametrize("stack", list(STACKS), ids=list(STACKS))
def matrix(session: nox.Session, stack: str) -> None:
    """Install a stack in an environment of its own, and record what the shim does there."""
    constraints = constraints_of(stack)
    # What was resolved is used again: `nox --reuse-venv=no` makes a new one, and so takes newer releases in `newest`.
    installed = Path(session.virtualenv.location, "constraints.txt").absolute()
    if not installed.exists() or installed.read_text() != constraints:
        pins = installed.with_name("wanted.txt")
        pins.write_text(constraints)
        session.install("--quiet", "--constraint", str(pins), "--no-deps", "torch")
        session.run_install("python", "-m", "tests.versions.without_gpu")
        session.install("--quiet", "--constraint", str(pins), "--editable", ".", *INSTALLED, *TOOLS)
        pins.rename(installed)
    session.run("python", "-W", "default", "-m", "tests.versions.record", stack, *session.posargs, env=ENVIRONMENT)


@nox.session
def engines(session: nox.Session) -> None:
    """Install engines that are packages of their own, and record what the shim does in these and in torch's."""
    pins = ("--quiet", "--constraint", "constraints.txt")
    session.install(*pins, "torch")  # DeepSpeed's setup asks for it
    session.install(*pins, "--editable", ".", *INSTALLED, *ENGINES, env=NO_KERNELS)
    session.run("python", "-W", "default", "-m", "tests.distributed.record", *session.posargs, env=ENVIRONMENT)


@nox.session
@nox.parametrize("python", ENGINE["python"], ids=ENGINE["python"])
def engine(session: nox.Session) -> None:
    """Run the engine's tests with each wrapt, and record what came of them."""
    session.install("--quiet", "hypothesis", "packaging", "pytest")
    for release in ENGINE["wrapt"]:
        session.install("--quiet", f"wrapt=={release}")
        session.run("python", "-m", "tests.versions.engine", *session.posargs, env=ENVIRONMENT)


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and, of it, the wheel, each in an environment of pip's, and have twine look at them."""
    session.install("--quiet", "build", "twine", "readme-renderer[md]")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *(f"dist/{file.name}" for file in (ROOT / "dist").iterdir()))


@nox.session
@nox.parametrize("program", list(PROGRAMS), ids=list(PROGRAMS))
def programs(session: nox.Session, program: str) -> None:
    """Install a program, and record how it runs without and with the shim."""
    wanted = PROGRAMS[program]
    folder = Path(session.virtualenv.location).absolute()
    installed, constraints = folder / "installed.txt", folder / "constraints.txt"
    what = "\n".join([str(wanted), *CONSTRAINTS]) + "\n"
    if not installed.exists() or installed.read_text() != what:
        constraints.write_text("\n".join(CONSTRAINTS))
        install_program(session, wanted, folder, "--quiet", "--constraint", str(constraints))
        installed.write_text(what)
    session.run("python", "-m", "tests.programs.record", program, *session.posargs, env=ENVIRONMENT)


def install_program(session: nox.Session, wanted: dict[str, Any], folder: Path, *options: str) -> None:
    """The program with what it asks for, but ``without`` some of that; then the shim."""
    session.install(*options, "torch", "packaging")
    others = [wanted["install"]]
    if "without" in wanted:
        session.install(*options, "--no-deps", *others)
        asked = ("python", "-m", "tests.programs.requirements", *others, *wanted["without"])
        others = session.run_install(*asked, silent=True).split("\n")
    if "uncompiled" in wanted:
        session.install(*options, "--no-deps", wanted["uncompiled"])
        for library in folder.glob(f"lib/*/site-packages/{wanted['uncompiled']}/lib/*.so"):
            library.unlink()
    session.install(*options, "--editable", ".", *filter(None, others), *wanted["extra"])


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def constraints_of(stack: str) -> str:
    """The lines that pip is held to."""
    wanted = DEFAULTS | STACKS[stack]
    if wanted.pop("constraints", False):
        return (ROOT / "constraints.txt").read_text()
    lines = [name + (release if re.match("[<>=]", release) else f"=={release}") for name, release in wanted.items()]
    return "\n".join(lines) + "\n"
