"""What a trace holds: rows of words and numbers, no tensor and no module."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ran:
    """A module as it ran in one phase, with these dtypes; how often is counted beside it.

    Attributes:
        path: in the traced model; empty for the model itself.
        module: its class.
        phase: ``training``, ``evaluation``, ``generation``, or a name that was given.
        inputs: dtypes of its floating arguments, each once.
        weight: dtype of its own weight; of a k-bit layer how it is packed, ``nf4``, ``fp4`` or ``int8``.
        compute: dtype that a k-bit layer is configured to compute in.
        autocast: dtype of the autocast region around it.
        outputs: dtypes of its floating results, each once.

    Examples:
        >>> [*trace.ran][-1]
        Ran(path='base_model.model.lm_head', module='Linear', phase='generation', inputs=('float32',),
        weight='bfloat16', compute=None, autocast=None, outputs=('float32',))
    """

    path: str
    module: str
    phase: str
    inputs: tuple[str, ...]
    weight: str | None
    compute: str | None
    autocast: str | None
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CastSeen:
    """A cast that a patch made in one phase; how often is counted beside it.

    Attributes:
        path: of the innermost module around it.
        module: its class.
        phase: as ``Ran`` has it.
        operation: torch's name of the operation that refused the dtypes.
        operand: which of its operands was cast.
        given: dtype of the operand.
        to: dtype that it was cast to.
        patch: the patch that cast it.
        needed: whether torch would have raised without it.

    Examples:
        >>> trace.mismatches()[0]
        CastSeen(path='base_model.model.lm_head', module='Linear', phase='generation', operation='linear',
        operand='input', given='float32', to='bfloat16', patch='peft.boundary', needed=True)
    """

    path: str
    module: str
    phase: str
    operation: str
    operand: str
    given: str
    to: str
    patch: str
    needed: bool = True

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.operation} has its {self.operand} cast from {self.given} to {self.to} by {self.patch}"
        )


@dataclasses.dataclass(frozen=True)
class Refused:
    """A refusal of dtypes that got out of the traced model; how often is counted beside it.

    Attributes:
        path: of the innermost module around it.
        module: its class.
        phase: as ``Ran`` has it.
        message: the first line of what torch said.

    Examples:
        >>> with qlora_bf16_patch.disabled(), qlora_bf16_patch.trace(model) as trace:
        ...     try:
        ...         model(**inputs)
        ...     except RuntimeError:
        ...         pass
        >>> [str(refused) for refused in trace.refused]
        ['torch refused in base_model.model.lm_head: expected m1 and m2 to have the same dtype, but got: float !=
        c10::BFloat16']
    """

    path: str
    module: str
    phase: str
    message: str

    def __str__(self) -> str:
        return f"torch refused in {self.path or self.module}: {self.message}"


def to_row(seen: Any, count: int) -> dict[str, Any]:
    """A row of JSON."""
    return {**dataclasses.asdict(seen), "count": count}


def from_row(cls: Any, row: dict[str, Any]) -> tuple[Any, int]:
    """Such a row back.

    Raises:
        TypeError: it is none.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    count: Any = fields.pop("count")
    seen = cls(**fields)
    for field in dataclasses.fields(cls):
        value = getattr(seen, field.name)
        if not _fits(value, str(field.type)):
            raise TypeError(f"{field.name} is {value!r}")
    return seen, whole(count)


def whole(count: Any) -> int:
    """A number that was read, which is to count something.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(count, int) or count < 0:
        raise TypeError(f"a count is {count!r}")
    return count


def text(value: Any) -> str:
    """Words that were read, and that can be printed.

    Raises:
        TypeError: they are none.
        ValueError: UTF-8 has no such characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()
    return value


def _fits(value: Any, annotation: str) -> bool:
    if annotation == "bool":
        return isinstance(value, bool)
    if annotation.startswith("tuple"):
        return isinstance(value, tuple) and all(text(word) is word for word in value)
    return (value is None and annotation.endswith("None")) or text(value) is value
