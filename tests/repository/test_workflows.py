"""What the workflows and the hooks of pre-commit call is there, and they name all Pythons and stacks."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tomllib
import yaml

from .packages import ROOT

STACKS = tomllib.loads((ROOT / "tests/versions/stacks.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
JOBS = {
    f"{file.stem}: {name}": job for file in WORKFLOWS for name, job in yaml.safe_load(file.read_text())["jobs"].items()
}


def commands(job):
    """Its lines of the shell, one for each element of the job's matrix."""
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    for name, values in job.get("strategy", {}).get("matrix", {}).items():
        lines = [line.replace(f"${{{{ matrix.{name} }}}}", value) for line in lines for value in values]
    return lines


@pytest.fixture(scope="module")
def sessions():
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {one["session"] for one in json.loads(listed.stdout)}


def problem(command, sessions):
    """Why a command would not find what it calls."""
    program, *arguments = shlex.split(command)
    if program == "make" and not shutil.which("make"):
        pytest.skip("there is no make here")
    if program == "make":
        dry = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
        wanted = re.findall(r'nox -s "(matrix\(.*?\))"', dry.stdout)
        return dry.stderr or ", ".join({*wanted} - sessions)
    if program == "pipx" and "nox" in arguments:
        wanted = arguments[arguments.index("-s") + 1]
        return "" if wanted in sessions else f"no session {wanted}"
    return "neither make nor nox"


@pytest.mark.parametrize("name", JOBS)
def test_a_job_calls_a_target_of_make_or_a_session_of_nox(name, sessions):
    lines = commands(JOBS[name])
    assert lines and not any("${{" in line for line in lines)
    assert {line: why for line in lines if (why := problem(line, sessions))} == {}


@pytest.mark.parametrize(
    "command", ["make tset", "pipx run nox -s engines_", "make matrix-check CHECKED=transformers-9", "pytest"]
)
def test_a_command_that_calls_what_is_not_there_is_found(command, sessions):
    assert problem(command, sessions)


def test_all_pythons_and_stacks_are_named():
    assert JOBS["tests: engine"]["strategy"]["matrix"]["python"] == STACKS["engine"]["python"]
    assert JOBS["stacks: stack"]["strategy"]["matrix"]["stack"] == [
        name for name in STACKS if name not in ("defaults", "engine")
    ]


def test_the_hooks_of_pre_commit_are_what_lint_runs():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    steps = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    entries = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert len(entries) == len(steps)
    assert all(step.startswith(entry) for entry, step in zip(entries, steps, strict=True))


def test_every_target_that_is_named_has_a_rule():
    makefile = (ROOT / "Makefile").read_text()
    rules = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    (phony,) = re.findall(r"^.PHONY: (.*)", makefile, re.MULTILINE)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    told = {name for page in pages for name in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {*phony.split()} == rules
    assert told and told <= rules
