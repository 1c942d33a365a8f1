"""The sweep, on a release that may be older; its workers import this module, too."""

from . import older  # noqa: F401  # isort: skip

import sys

from sweep.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
