"""Modules whose own autograd function multiplies two dtypes in its backward, which no function mode sees.

Autocast's forward takes both, and the backward, which runs outside of it, fails. So they run without autocast, and what
torch refuses in their forward is cast there. An entry goes once its test no longer fails without it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class OwnBackward(NamedTuple):
    """Why a class is in the table.

    Attributes:
        function: the autograd function.
        reason: what its backward multiplies.
        version: of the library that was read.
        test: shows that the entry is still needed.
    """

    function: str
    reason: str
    version: str
    test: str


OWN_BACKWARD = {
    "peft.tuners.loha.layer.Linear": OwnBackward(
        "HadaWeight",
        "adapters in the other half precision than autocast's by the gradient in autocast's",
        "peft 0.21.2",
        "tests/recipes/test_own_backward.py::test_loha_needs_its_entry",
    ),
    "transformers.models.yoso.modeling_yoso.YosoSelfAttention": OwnBackward(
        "YosoCumulation",
        "scores in autocast's dtype by the float32 queries and keys that it was given",
        "transformers 5.23.0",
        "tests/recipes/test_own_backward.py::test_yoso_needs_its_entry",
    ),
}


def has_own_backward(cls: Any) -> bool:
    """Whether a module's class is in the table."""
    return f"{cls.__module__}.{cls.__qualname__}" in OWN_BACKWARD
