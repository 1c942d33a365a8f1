"""What to do with an operation that torch refuses for its operands' dtypes. A rule a family, a file a kind.

A rule is ``rule(mode, func, args, kwargs)``. It finds out whether torch takes the operands as they are; only where it
does not, and where ``mode.may_cast`` agrees, it casts them. ``RULES`` maps torch's functions to their rules.
"""

from __future__ import annotations

from typing import Any

from . import attention, fills, joins, products, weighted, writes

RULES: dict[Any, Any] = {
    **products.RULES,
    **weighted.RULES,
    **attention.RULES,
    **fills.RULES,
    **joins.RULES,
    **writes.RULES,
}
