"""accelerate's hooks keep the method that they found (hooks.py, add_hook_to_module, 1.15.0)."""

from __future__ import annotations

KEPT = "_old_forward"
