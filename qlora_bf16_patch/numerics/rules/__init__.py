"""What to do with an operation that torch refuses because of its operands' dtypes.

Most operations need no entry. Torch raises an error, and they are run again in the widest dtype of their operands; an
operation in place is run again in the dtype of the tensor that it writes to. ``RULES`` has the operations that are
computed in another dtype, and those for which Dynamo, which cannot try an operation, has to know that torch refuses it.
"""

from .table import ASKED_FIRST, rule_of

__all__ = ["ASKED_FIRST", "rule_of"]
