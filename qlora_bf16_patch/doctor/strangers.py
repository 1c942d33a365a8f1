"""Who else has replaced functions of the libraries that are patched, found by where a function's code comes from."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .. import _registry
from ..engine.versions import installed
from ..patches import CATALOGUE

_OURS = __name__.partition(".")[0]


def strangers() -> list[str]:
    """A sentence for each package that stands in a patched library's classes, or on a taken-in model's modules."""
    told: dict[str, list[str]] = {}
    for package, place in [*_in_classes(), *_on_modules()]:
        told.setdefault(package, []).append(place)
    return [
        f"{_spoken(package)} stands in {', '.join(places[:3])}{f' and {len(places) - 3} more' if places[3:] else ''}"
        for package, places in sorted(told.items())
    ]


def over_ours() -> list[str]:
    """A sentence for each patched function over which another party's wrapper stands that calls ours."""
    told = []
    for row in _registry.status():
        installation = _registry.installation(row.name)
        ours = {layer.function for layer in installation.layers}
        for owner, attribute, _ in installation.targets if row.state == "active" else ():
            top = getattr(owner, attribute, None)
            package = _package(top)
            if top not in ours and package not in ("", _OURS):
                told.append(f"{owner.__name__}.{attribute} is wrapped by {package}, which calls {row.name}")
    return told


def _in_classes() -> Iterator[tuple[str, str]]:
    libraries, at_home = _libraries(), _at_home()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in libraries or not isinstance(module, types.ModuleType):
            continue
        # Not isinstance: that asks the object, and torch has some that warn then (torch.distributed.reduce_op).
        classes = [value for value in list(vars(module).values()) if issubclass(type(value), type)]
        for cls in [cls for cls in classes if cls.__module__ == name]:
            for attribute, value in list(vars(cls).items()):
                package = _package(value)
                # A named tuple's functions are of a module that nobody has (collections, namedtuple_NAME).
                if package in sys.modules and package not in at_home:
                    yield package, f"{name}.{cls.__name__}.{attribute}"


def _on_modules() -> Iterator[tuple[str, str]]:
    """In models that were taken in: forwards on single modules, as accelerate's hooks are, and a library's model with
    modules of another package's class, as a replaced ``modeling_llama.LlamaRMSNorm`` leaves it."""
    training: Any = sys.modules.get(f"{_OURS}.numerics.training")
    counted: Counter[tuple[str, str]] = Counter()
    libraries, at_home = _libraries(), _at_home()
    for model in training.models() if training else ():
        name = type(model).__name__
        is_librarys = type(model).__module__.partition(".")[0] in libraries
        for module in model.modules():
            package, cls = _package(module.__dict__.get("forward")), type(module)
            if package not in ("", _OURS):
                counted[package, f"a module's own forward in {name}"] += 1
            package = cls.__module__.partition(".")[0]
            if is_librarys and package not in at_home:
                counted[package, f"{cls.__name__} in {name}"] += 1
    for (package, place), count in counted.items():
        yield package, f"{place} ({count} of them)" if count > 1 else place


def _package(value: Any) -> str:
    """The top-level package that a function's code was written in; empty for what is no Python function."""
    while isinstance(value, (functools.partial, types.MethodType, staticmethod, classmethod)):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    if not isinstance(value, types.FunctionType):
        return ""
    return str(value.__globals__.get("__name__") or "").partition(".")[0]


def _at_home() -> set[str]:
    """The packages whose functions are no stranger's."""
    libraries = _libraries()
    return _required(libraries) | libraries | sys.stdlib_module_names | {_OURS}


def _libraries() -> set[str]:
    return {patch.module.partition(".")[0] for patch in CATALOGUE} | {"torch"}


def _required(libraries: set[str]) -> set[str]:
    """What the libraries ask for themselves, and use as decorators (typing_extensions)."""
    asked: set[str] = set()
    for library in libraries:
        try:
            lines = importlib.metadata.requires(library) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        asked.update(re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_") for line in lines)
    return asked


def _spoken(package: str) -> str:
    version = installed(package)
    return f"{package} {version}" if version else package
