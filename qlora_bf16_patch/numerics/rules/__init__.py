"""What to do with an operation that torch refuses for its operands' dtypes. A rule a family, a file a kind.

Most need no entry: torch itself says that it refuses, and they run again in the dtype of their first floating operand.
``RULES`` has those that compute in another dtype, and those in which the refusal is known without asking torch, which
Dynamo cannot do.
"""

from __future__ import annotations

from typing import Any

from . import attention, products, weighted, writes
from .rule import Rule

RULES: dict[Any, Rule] = {**products.RULES, **weighted.RULES, **attention.RULES, **writes.RULES}
ASKED_FIRST = frozenset(func for func, rule in RULES.items() if rule.written is not None)
_ANY, _IN_PLACE = Rule(), Rule(in_place=True)


def rule_of(func: Any) -> Rule:
    rule = RULES.get(func)
    if rule is None:
        name = getattr(func, "__name__", "")
        return _IN_PLACE if name[-1:] == "_" != name[-2:-1] or name[:3] == "__i" else _ANY
    return rule
