"""``qlora-bf16-patch doctor``: what is here, what is patched and still needs it, who is in the way, does it work."""
