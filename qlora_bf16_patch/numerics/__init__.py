"""Torch alone: dtypes, regions of autocast, the function mode that casts. Nothing here knows a host or a patch."""
