"""Which modules need a cast, found by looking: a call in which torch refuses dtypes is run again under the mode.

The module around such an operation keeps the mode for that kind of call. The others keep nothing.
"""
