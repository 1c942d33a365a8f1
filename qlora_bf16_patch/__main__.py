"""Entry point of ``python -m qlora_bf16_patch``."""

from .cli import main

raise SystemExit(main())
