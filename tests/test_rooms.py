"""What a folder of the package, or of the repository, may know: arrows point down only."""

import ast
import sys
from pathlib import Path

import pytest

import qlora_bf16_patch

ROOT = Path(qlora_bf16_patch.__file__).parent
HOSTS = {"bitsandbytes", "peft", "accelerate", "transformers", "trl", "deepspeed"}
# Folder: those of ours that it may import beside itself, and the libraries.
ROOMS = {
    "engine": (set(), {"wrapt", "packaging"}),
    "numerics": (set(), {"torch"}),
    "hosts": ({"numerics"}, {"torch", "packaging", *HOSTS}),
    "watching": ({"engine", "numerics"}, {"torch"}),
    "inspection": ({"engine", "numerics", "hosts", "watching"}, {"torch", "rich", "jinja2", "markupsafe"}),
    "patches": ({"engine", "numerics", "hosts", "watching"}, {"torch"}),
    "defects": (set(), {"torch", *HOSTS}),
    "doctor": (
        {
            "engine",
            "watching",
            "patches",
            "defects",
            "run",
            "at_end",
            "bootstrap",
            "_registry",
            "__version__",
            *qlora_bf16_patch.__all__,
        },
        {"torch", "packaging"},
    ),
    "commands": (
        {"engine", "inspection", "patches", "doctor", "run", "trace_file", "_known", *qlora_bf16_patch.__all__},
        {"rich", "argcomplete"},
    ),
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


# Folders beside the package, which all of them may import: those that each may import as well.
BESIDE = {
    "emulated_cuda": set(),
    "toys": {"emulated_cuda"},
    "sweep": {"toys"},
    "benchmarks": {"toys"},
    "tests": {"emulated_cuda", "toys", "sweep"},
}
TOOLS = [path for folder in BESIDE for path in sorted((ROOT.parent / folder).rglob("*.py"))]


def imported(path):
    """The absolute names of all modules that a file imports, wherever it does."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ([module] if node.module else [f"{module}.{alias.name}" for alias in node.names])


def named(path):
    return str(path.relative_to(ROOT.parent))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_imports_only_what_its_folder_may_know(path):
    room = path.relative_to(ROOT).parts[0]
    ours, libraries = ROOMS[room]
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "qlora_bf16_patch":
            assert rest[0] in {room, *ours}, name
        else:
            assert top in libraries | sys.stdlib_module_names, name


def test_every_folder_has_its_rules():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", TOOLS, ids=named)
def test_a_file_beside_the_package_imports_only_what_its_folder_may_know(path):
    folder = path.relative_to(ROOT.parent).parts[0]
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in BESIDE.keys() - {folder, *BESIDE[folder]}, name
        # Neither tests nor fixtures are taken from another file's: what two share is no test.
        assert not any(part.startswith("test_") or part == "conftest" for part in rest if top == "tests"), name
