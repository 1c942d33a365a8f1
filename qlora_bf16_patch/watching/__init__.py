"""Which modules of a model need a cast, found by looking: a call of a new kind runs under the function mode.

Where torch would have refused an operation, the module around it keeps the mode for that kind of call. The others keep
nothing.
"""
