"""Modules whose own autograd function multiplies two dtypes in its backward, which no function mode sees.

Autocast's forward takes both, and the backward, which runs outside of it, fails. So they run without autocast, and what
torch refuses in their forward is cast there. An entry can go if tests/recipes/test_own_backward.py passes without it.
"""

from __future__ import annotations

from typing import Any

# By the module's class the autograd function.
OWN_BACKWARD = {
    # Adapters in the other half precision than autocast's, by the gradient in autocast's (peft 0.21.2).
    "peft.tuners.loha.layer.Linear": "HadaWeight",
    # Scores in autocast's dtype, by the float32 queries and keys that it was given (transformers 5.23.0).
    "transformers.models.yoso.modeling_yoso.YosoSelfAttention": "YosoCumulation",
}


def has_own_backward(cls: Any) -> bool:
    """Whether a module's class is in the table."""
    return f"{cls.__module__}.{cls.__qualname__}" in OWN_BACKWARD
