"""The installed packages that the shim's work depends on, found by what packages ask for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..engine.versions import installed, within
from ..patches import CATALOGUE

NAME = "qlora-bf16-patch"


def packages() -> list[dict[str, Any]]:
    """The patched libraries, what the shim asks for, and whoever asks for a patched library.

    Returns:
        Name, version, and what is asked for that is not there, in words.
    """
    patched = {patch.distribution for patch in CATALOGUE if patch.distribution}
    found: dict[str, Any] = {
        canonicalize_name(one.metadata["Name"] or ""): one for one in importlib.metadata.distributions()
    }
    wanted = {name for name in (NAME, *patched) if name in found}
    wanted |= {ask.name for name in (NAME,) if name in found for ask in _asks(found[name], found)}
    wanted |= {name for name, one in found.items() if patched & {ask.name for ask in _asks(one, found, extras=True)}}
    return [
        {"name": name, "version": found[name].version, "unmet": _unmet(found[name], found, wanted | patched)}
        for name in sorted(wanted)
    ]


def _unmet(one: Any, found: Any, wanted: Collection[str]) -> list[str]:
    """What ``pip check`` would say of a package, within those that matter here."""
    return [
        f"asks for {ask.name}{ask.specifier}, found {installed(ask.name) or 'none'}"
        for ask in _asks(one, found, absent=True)
        if ask.name in wanted and not within(installed(ask.name) or "0", str(ask.specifier))
    ]


def _asks(one: Any, found: Any, extras: bool = False, absent: bool = False) -> Iterator[Requirement]:
    """A distribution's requirements here, by canonical names: of those installed, or of all."""
    for line in one.requires or ():
        try:
            ask = Requirement(line)
        except InvalidRequirement:  # an old package's; pip has let it through
            continue
        ask.name = canonicalize_name(ask.name)
        applies = ask.marker is None or ask.marker.evaluate({"extra": ""}) or (extras and "extra" in str(ask.marker))
        if applies and (absent or ask.name in found):
            yield ask
