"""What to do with an operation that torch refuses because of its operands' dtypes.

Most operations need no entry. Torch raises an error, and they are run again in the widest dtype of their operands; an
operation in place is run again in the dtype of the tensor that it writes to. ``RULES`` has the operations that are
computed in another dtype, and those for which Dynamo, which cannot try an operation, has to know that torch refuses it.
"""

from __future__ import annotations

from typing import Any

from .rule import Rule, first_operand
from .table import RULES

ASKED_FIRST = frozenset(func for func, rule in RULES.items() if rule.written is not None)
_ANY, _IN_PLACE = Rule(), Rule(dtypes=first_operand, in_place=True)


def rule_of(func: Any) -> Rule:
    rule = RULES.get(func)
    if rule is None:
        name = getattr(func, "__name__", "")
        return _IN_PLACE if name[-1:] == "_" != name[-2:-1] or name[:3] == "__i" else _ANY
    return rule
