"""Modules of transformers that need more than the mode."""

from __future__ import annotations

# Their autograd.Function multiplies in its backward, where no mode is, what autocast's forward saw in two dtypes. They
# run without autocast where they are given float32 in training. transformers 5.23.0; held by `make sweep`.
OWN_BACKWARD = {"transformers.models.yoso.modeling_yoso.YosoSelfAttention"}
