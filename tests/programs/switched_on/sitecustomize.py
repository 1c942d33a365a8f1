import qlora_bf16_patch  # noqa: F401
