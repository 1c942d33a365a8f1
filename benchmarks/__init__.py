"""What the shim costs: ``python -m benchmarks [--only layer ...] [--quick]``, or ``make bench``."""
