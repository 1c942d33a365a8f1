"""The reported failure (huggingface/peft#1515) on a tiny Llama: without the shim, and with it as switched here."""

from __future__ import annotations

import warnings
from typing import Any

from .. import disabled
from ..watching.refusals import is_of_dtypes


def reported() -> dict[str, Any]:
    """Generate outside of autocast, twice.

    Returns:
        For ``"off"`` and ``"on"`` the tokens, or the error in one line and whether torch refused dtypes.
    """
    from ..defects.models import tiny_llama  # PEFT imports transformers, so that it is there wherever PEFT is

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with disabled(force=True):
            off = _tried(tiny_llama)
        return {"off": off, "on": _tried(tiny_llama)}


def _tried(made: Any) -> dict[str, Any]:
    from ..defects.models import generated

    try:
        return {"tokens": generated(made())}
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return {"error": text, "of_dtypes": is_of_dtypes(error)}
