"""What each patch promises, as checks that can be run without it: they show what a release of a library does by itself.

A patch of the catalogue names its function here, as ``Patch.promises``. Nothing is run at import. Each check builds its
toy anew, of real layers of bitsandbytes and PEFT, on the GPU if there is one.
"""
