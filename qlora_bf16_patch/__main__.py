"""Entry point of ``python -m qlora_bf16_patch``."""

from .commands import main

raise SystemExit(main())
