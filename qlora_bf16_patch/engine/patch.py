"""What a patch is, and what is told about one."""

from __future__ import annotations

import dataclasses
import importlib
import operator
from collections.abc import Callable
from typing import Any

Factory = Callable[[Any, Any], Callable[..., Any]]
"""``factory(original, installation)`` returns the plain function that takes the place of ``original``."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


# What a field may hold, by its annotation.
_FITS: dict[str, Callable[[object], bool]] = {
    "str": _is_text,
    "tuple[str, ...]": _are_texts,
    "str | tuple[str, ...]": lambda value: _is_text(value) or _are_texts(value),
    "str | Callable[[], Factory]": lambda value: _is_text(value) or callable(value),
    "bool": lambda value: True,
}


class Unsupported(Exception):
    """Upstream lacks the shape that a patch relies on. A factory raises it; its text is the reason in the status.

    Examples:
        >>> from qlora_bf16_patch.engine.installation import Installation
        >>> def factory(original, installation):
        ...     raise qlora_bf16_patch.Unsupported("LlamaRMSNorm has no variance_epsilon")
        >>> Installation("llama.norms").wrap(type(norm), "forward", factory)
        Traceback (most recent call last):
            ...
        qlora_bf16_patch.engine.patch.Unsupported: LlamaRMSNorm has no variance_epsilon
    """


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch, as data.

    Attributes:
        name: ``library.thing``, lower case.
        module: the module whose import brings the target.
        attribute: dotted path of the target inside the module, ``Class.method`` or a function; or several of them,
            which are patched all or none. One that stands in another module, which this one imports, is
            ``"other.module:Class.method"``.
        load: the factory, as ``"package.module:function"``, or a callable that returns it. It is looked up only once
            the target's library is there, so its module may import torch.
        summary: one line for the status.
        distribution: the library whose version gates the patch.
        requires: version range of the distribution, as in a requirement.
        tested: the newest version of the distribution that was tested. A newer one is patched, and the status says so.
        default: whether the patch is on where nobody decided.
        reports: upstream threads that report what it mends, ``owner/repo#N``.
        pull_requests: those that mend a part of it, or set out to, ``owner/repo#N``.
        mended_in: the distribution's first release that does by itself all that the patch does, as ``"0.60"``: with
            it the patch can go. Empty where no release does.
        promises: what it makes true, as checks that can be run without it: ``"module:function"``, which returns
            ``Promise`` objects of ``qlora_bf16_patch.defects.promise``. Only ``doctor`` and the tests look it up.

    Examples:
        >>> patch = qlora_bf16_patch.Patch(
        ...     name="llama.norms",
        ...     module="transformers.models.llama.modeling_llama",
        ...     attribute="LlamaRMSNorm.forward",
        ...     load=lambda: keeps_dtype,
        ...     summary="norms give back the dtype of their hidden states",
        ...     distribution="transformers",
        ...     requires=">=4.38",
        ... )
        >>> patch.default
        True
    """

    name: str
    module: str
    attribute: str | tuple[str, ...]
    load: str | Callable[[], Factory]
    summary: str = ""
    distribution: str = ""
    requires: str = ""
    tested: str = ""
    default: bool = True
    reports: tuple[str, ...] = ()
    promises: str = ""
    pull_requests: tuple[str, ...] = ()
    mended_in: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _FITS[str(field.type)](value):
                raise TypeError(f"{field.name} of the patch {self.name!r} is to be {field.type}, not {value!r}")

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """Module and dotted path of each target.

        Examples:
            >>> qlora_bf16_patch.Patch("llama.norms", "llama", ("Norm.forward", "head:Head.forward"), "m:f").targets
            (('llama', 'Norm.forward'), ('head', 'Head.forward'))
        """
        attributes = (self.attribute,) if isinstance(self.attribute, str) else self.attribute
        split = (attribute.rpartition(":") for attribute in attributes)
        return tuple((module or self.module, path) for module, _, path in split)

    def spoken_targets(self) -> str:
        """The targets for a reader.

        Returns:
            Each as ``module:path``, with commas between them.

        Examples:
            >>> patch = qlora_bf16_patch.Patch("llama.norms", "llama", ("Norm.forward", "head:Head.forward"), "m:f")
            >>> patch.spoken_targets()
            'llama:Norm.forward, head:Head.forward'
        """
        return ", ".join(f"{module}:{path}" for module, path in self.targets)

    def factory(self) -> Factory:
        """Import the factory. Whatever its module raises comes through.

        Returns:
            What ``load`` names, or gives where it is called.

        Raises:
            ModuleNotFoundError: there is no such module.
            AttributeError: there is no such function in it.

        Examples:
            >>> qlora_bf16_patch.Patch("llama.norms", "llama", "Norm.forward", "no_such_module:factory").factory()
            Traceback (most recent call last):
                ...
            ModuleNotFoundError: No module named 'no_such_module'
        """
        if not isinstance(self.load, str):
            return self.load()
        module, _, function = self.load.partition(":")
        factory: Factory = operator.attrgetter(function)(importlib.import_module(module))
        return factory


@dataclasses.dataclass(frozen=True)
class Status:
    """The state of one patch.

    Attributes:
        name: of the patch.
        state: pending, active, off, skipped, failed or shadowed.
        reason: why, for a reader.
        decided_by: who turned it on or off: default, environment (with the variable) or call.
        version: of the patch's library, None where it is not installed.
        summary: what the patch does.
        notes: what the patch noticed while it ran.
        reports: as in ``Patch``, and so are the next two.
        pull_requests: upstream.
        mended_in: the release with which the patch can go.

    Examples:
        >>> row = qlora_bf16_patch.status()[0]
        >>> row.name, row.state, row.decided_by
        ('bitsandbytes.linear4bit', 'active', 'default')
        >>> row.reason
        'bitsandbytes.nn.modules:Linear4bit.forward is patched'
    """

    name: str
    state: str
    reason: str
    decided_by: str
    version: str | None
    summary: str
    notes: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    pull_requests: tuple[str, ...] = ()
    mended_in: str = ""
