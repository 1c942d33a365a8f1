"""Asks torch which operations refuse which mixtures of floating dtypes, and what the function mode makes of them.

``python -m tests.numerics.operations`` prints what is wrong, and with ``--write`` writes docs/operations.md.
"""
