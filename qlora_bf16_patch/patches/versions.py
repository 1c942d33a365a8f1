"""The releases that the package is for; setup.cfg, the README and docs/versions.md say the same, which tests hold."""

from __future__ import annotations

from typing import Any

# What is installed must be this or newer; transformers is not asked for, and its patch is left out below this.
FLOORS = {
    "python": "3.10",
    "wrapt": "1.15",
    "torch": "2.4",
    "peft": "0.6",
    "bitsandbytes": "0.43",
    "packaging": "21",
    "transformers": "4.30",
}
# The newest releases with which `make matrix` was recorded.
TESTED = {"transformers": "5.24.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}


def gate(distribution: str) -> dict[str, Any]:
    """What a `Patch` is told of its library's releases."""
    return {"distribution": distribution, "requires": f">={FLOORS[distribution]}", "tested": TESTED[distribution]}
