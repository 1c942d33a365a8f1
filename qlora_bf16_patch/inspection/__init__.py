"""What people look at: dtypes of a model that ran, and of one that did not."""

from .assertions import DtypeAssertionError
from .trace import Trace

__all__ = ["DtypeAssertionError", "Trace"]
