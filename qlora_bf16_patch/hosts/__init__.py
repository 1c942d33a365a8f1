"""The only files that know classes of bitsandbytes, PEFT, accelerate and transformers, and their quirks."""
