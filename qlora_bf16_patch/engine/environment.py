"""The environment variables: grammar, errors, and which patch they turn on or off."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Collection, Iterable, Mapping

MAIN = "QLORA_BF16_PATCH"
ON, OFF = ("1", "on", "true", "yes"), ("0", "off", "false", "no")
VARIABLES = tuple(f"{MAIN}_{suffix}" for suffix in ("ENABLE", "DISABLE", "STRICT", "LOG"))
LEVELS = ("debug", "info", "warning")


class UnknownPatchError(ValueError):
    """A patch name or glob that matches nothing; it lists the names that there are, and suggests the nearest.

    Examples:
        >>> qlora_bf16_patch.disable("peft.linear4bit")
        Traceback (most recent call last):
            ...
        qlora_bf16_patch.engine.environment.UnknownPatchError: 'peft.linear4bit' is not known. Known: ...
        Did you mean 'peft.lora.linear4bit'?
    """


class EnvironmentVariableError(ValueError):
    """A variable of ours holds something that is not in its grammar. The import of the package raises it.

    Examples:
        >>> from qlora_bf16_patch.engine.environment import Environment
        >>> Environment({"QLORA_BF16_PATCH_STRICT": "yess"}, known=())
        Traceback (most recent call last):
            ...
        qlora_bf16_patch.engine.environment.EnvironmentVariableError: QLORA_BF16_PATCH_STRICT='yess' is not known.
        Known: 0, 1, false, no, off, on, true, yes. Did you mean 'yes'?
    """


def canonical(name: str) -> str:
    """Case and surrounding space do not matter, ``-`` equals ``_``."""
    return name.strip().lower().replace("-", "_")


def nearest(name: str, known: Iterable[str], spelled: Callable[[str], str] = canonical) -> str:
    """' Known: a, b. Did you mean a?'"""
    import difflib  # here, since it takes a millisecond, and only errors need it

    known = sorted(known)
    close = difflib.get_close_matches(spelled(name), known, n=1, cutoff=0.4)
    return f" Known: {', '.join(known)}." + (f" Did you mean {close[0]!r}?" if close else "")


def is_killed(environ: Mapping[str, str]) -> bool:
    """Whether the kill switch is set, whatever else is. Nothing of ours is looked up then, so nothing can raise."""
    return canonical(environ.get(MAIN, "")) in OFF


class Environment:
    """What the environment says, read once.

    Args:
        environ: the environment.
        known: names of the patches in the catalogue; not looked at under the kill switch.
        moved: names of patches that there were once, and which patch does their work now.

    Attributes:
        killed: everything is off.
        strict: casts raise.
        log_level: of the log that is wanted on stderr, if any.

    Raises:
        EnvironmentVariableError: names the variable, lists what is known, suggests the nearest.
    """

    def __init__(
        self, environ: Mapping[str, str], known: Iterable[str], moved: Mapping[str, str] | None = None
    ) -> None:
        self._moved = {canonical(name): where for name, where in (moved or {}).items()}
        self.killed = is_killed(environ)
        self.strict = False
        level = canonical(environ.get(f"{MAIN}_LOG", ""))
        self.log_level: int | None = getattr(logging, level.upper()) if level in LEVELS else None
        if not self.killed:
            self._read(environ, [canonical(name) for name in known])

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

    def problem(self, pattern: str, known: Collection[str], words: Iterable[str] = ()) -> str | None:
        """What is wrong with a name or glob that matches no known patch; None where it matches one.

        Args:
            pattern: as the user wrote it.
            known: names of patches.
            words: what else could have been meant in this place.
        """
        if fnmatch.filter(known, canonical(pattern)):
            return None
        moved = fnmatch.filter(self._moved, canonical(pattern))
        if moved:
            return " ".join(f"{name!r} is now part of {self._moved[name]!r}: name that instead." for name in moved)
        return f"{pattern!r} is not known.{nearest(pattern, [*known, *words])}"

    def _read(self, environ: Mapping[str, str], known: list[str]) -> None:
        for variable in environ:
            if variable.startswith(f"{MAIN}_") and variable not in VARIABLES:
                hint = nearest(variable, [MAIN, *VARIABLES], str)
                raise EnvironmentVariableError(f"{variable} is not a variable of qlora_bf16_patch.{hint}")
        main = canonical(environ.get(MAIN, "")) or "1"
        self._only = None if main in ON else self._patterns(environ, MAIN, known, ON + OFF)
        self._enable = self._patterns(environ, f"{MAIN}_ENABLE", known)
        self._disable = self._patterns(environ, f"{MAIN}_DISABLE", known)
        self.strict = _choice(environ, f"{MAIN}_STRICT", ON + OFF) in ON
        _choice(environ, f"{MAIN}_LOG", LEVELS)

    def _patterns(
        self, environ: Mapping[str, str], variable: str, known: list[str], words: tuple[str, ...] = ()
    ) -> list[str]:
        text = environ.get(variable, "")
        patterns = [canonical(part) for part in text.split(",") if part.strip()]
        if text.strip() and not patterns:
            raise EnvironmentVariableError(f"{variable}={text!r} names nothing.{nearest('', [*known, *words])}")
        for pattern in patterns:
            problem = self.problem(pattern, known, words)
            if problem:
                raise EnvironmentVariableError(f"{variable}={text!r}: {problem}")
        return patterns


def _choice(environ: Mapping[str, str], variable: str, words: tuple[str, ...]) -> str:
    value = canonical(environ.get(variable, ""))
    if value and value not in words:
        raise EnvironmentVariableError(f"{variable}={value!r} is not known.{nearest(value, words)}")
    return value


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
