"""Registries of patches of a library that is not torch, and processes that have them."""

import os
import subprocess
import sys

from qlora_bf16_patch.engine.environment import Environment
from qlora_bf16_patch.engine.patch import Patch
from qlora_bf16_patch.engine.registry import Registry


def says_patched(original, installation):
    return lambda self: "patched" if installation.on else original(self)


def says_its_name(original, installation):
    """A wrapper that shows which wrappers a call goes through, in which order."""

    def forward(self):
        return f"{installation.name[5:]} " * installation.on + original(self)

    return forward


def make_registry(environ=None, **fields):
    patch = {
        "name": "fake.layer",
        "module": "fake_library",
        "attribute": "Layer.forward",
        "load": lambda: says_patched,
        "summary": "",
        "distribution": "wrapt",
    }
    registry = Registry(Environment(environ or {}, ["fake.layer"]))
    registry.register(Patch(**{**patch, **fields}))
    return registry


def make_registry_of(*names, environ=None, options=()):
    """A registry of patches ``fake.NAME`` of one method, which say their names; ``options`` are off by default."""
    names = [f"fake.{name}" for name in names]
    registry = Registry(Environment(environ or {}, names))
    for name in names:
        default = name[5:] not in options
        registry.register(Patch(name, "fake_library", "Layer.forward", lambda: says_its_name, default=default))
    return registry


def run(tmp_path, code, **environ):
    """Run code in a process of its own, which finds modules in ``tmp_path``."""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environ = {**os.environ, "PYTHONPATH": path, **environ}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, cwd="/")


def check(result):
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
