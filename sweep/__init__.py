"""Every model class of transformers and diffusers, quantized to 4 bits, in the ways in which users prepare a model."""
