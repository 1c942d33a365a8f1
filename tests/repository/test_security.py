"""What SECURITY.md says that the package does not do, as far as its imports and calls tell."""

import ast

import pytest

from .packages import ROOT

FILES = sorted((ROOT / "qlora_bf16_patch").rglob("*.py"))
# Connections, pickles, and what makes code of a text.
MODULES = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "pickle", "shelve", "marshal", "dill"}
CALLS = {"eval", "exec", "compile", "__import__"}


def found(text):
    """Lines that the document excludes."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        if any(name.split(".")[0] in MODULES for name in names):
            yield node.lineno
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called in ("torch.load", "torch.hub.load", "os.system"):
                yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_no_connection_loads_no_pickle_and_makes_no_code_of_a_text(path):
    assert [*found(path.read_text())] == []


@pytest.mark.parametrize("text", ["import urllib.request", "from pickle import load", "exec(text)", "torch.load(file)"])
def test_what_is_excluded_is_found(text):
    assert [*found(text)] == [1]
