"""What is asked of transformers. Import it where transformers is there."""

from __future__ import annotations

from transformers import TrainerCallback

__all__ = ["TrainerCallback"]
