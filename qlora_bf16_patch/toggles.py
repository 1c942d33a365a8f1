"""The environment variables: grammar, errors, and which patch they turn on or off. It imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping

MAIN = "QLORA_BF16_PATCH"
ON, OFF = ("1", "on", "true", "yes"), ("0", "off", "false", "no")
VARIABLES = tuple(f"{MAIN}_{suffix}" for suffix in ("ENABLE", "DISABLE", "STRICT", "LOG"))
LEVELS = ("debug", "info", "warning")


class UnknownPatchError(ValueError):
    """A patch name or glob that matches nothing."""


class EnvironmentVariableError(ValueError):
    """A variable of ours holds something that is not in its grammar."""


def canonical(name: str) -> str:
    """Case and surrounding space do not matter, ``-`` equals ``_``."""
    return name.strip().lower().replace("-", "_")


def nearest(name: str, known: Iterable[str], spelled: Callable[[str], str] = canonical) -> str:
    """' Known: a, b. Did you mean a?'"""
    known = sorted(known)
    close = difflib.get_close_matches(spelled(name), known, n=1, cutoff=0.4)
    return f" Known: {', '.join(known)}." + (f" Did you mean {close[0]!r}?" if close else "")


class Toggles:
    """What the environment says, read once.

    Args:
        environ: the environment.
        known: names of the patches in the catalogue.

    Raises:
        EnvironmentVariableError: names the variable, lists what is known, suggests the nearest.
    """

    def __init__(self, environ: Mapping[str, str], known: Iterable[str]) -> None:
        self._known = [canonical(name) for name in known]
        for variable in environ:
            if variable.startswith(f"{MAIN}_") and variable not in VARIABLES:
                raise EnvironmentVariableError(f"{variable} is no variable of ours.{nearest(variable, VARIABLES, str)}")
        main = canonical(environ.get(MAIN, "")) or "1"
        self.killed = main in OFF
        self._only = None if main in ON + OFF else self._patterns(MAIN, main, ON + OFF)
        self._enable = self._patterns(f"{MAIN}_ENABLE", environ.get(f"{MAIN}_ENABLE", ""))
        self._disable = self._patterns(f"{MAIN}_DISABLE", environ.get(f"{MAIN}_DISABLE", ""))
        self.strict = self._choice(environ, f"{MAIN}_STRICT", "0", ON + OFF) in ON
        level = self._choice(environ, f"{MAIN}_LOG", "", LEVELS)
        self.log_level: int | None = getattr(logging, level.upper()) if level else None

    def decide(self, name: str, default: bool) -> tuple[bool, str]:
        """Whether the patch is on, and who decided."""
        if self.killed:
            return False, f"environment ({MAIN})"
        if _matches(name, self._disable):
            return False, f"environment ({MAIN}_DISABLE)"
        if _matches(name, self._enable):
            return True, f"environment ({MAIN}_ENABLE)"
        if self._only is not None:
            return _matches(name, self._only), f"environment ({MAIN})"
        return default, "default"

    def _patterns(self, variable: str, text: str, words: tuple[str, ...] = ()) -> list[str]:
        patterns = [canonical(part) for part in text.split(",") if part.strip()]
        if text.strip() and not patterns:
            raise EnvironmentVariableError(f"{variable}={text!r} names nothing.{nearest('', [*self._known, *words])}")
        for pattern in patterns:
            if not fnmatch.filter(self._known, pattern):
                raise EnvironmentVariableError(
                    f"{variable}={text!r}: {pattern!r} is not known.{nearest(pattern, [*self._known, *words])}"
                )
        return patterns

    @staticmethod
    def _choice(environ: Mapping[str, str], variable: str, default: str, words: tuple[str, ...]) -> str:
        value = canonical(environ.get(variable, "")) or default
        if value and value not in words:
            raise EnvironmentVariableError(f"{variable}={value!r} is not known.{nearest(value, words)}")
        return value


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
