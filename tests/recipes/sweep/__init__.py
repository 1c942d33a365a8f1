"""Every architecture that transformers ships, quantized to 4 bits, under every way in which users prepare a model."""
