"""Toys of k-bit models, and the device that they are on, for the tests, the sweep and the benchmarks.

Import from its files: older releases of PEFT, on which the sweep and most tests run too, lack what some of them need.
"""
