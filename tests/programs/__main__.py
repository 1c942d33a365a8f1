"""``python -m tests.programs [--write]``: the page of programs, from the records."""

from .. import pages
from .page import PAGE, page

if __name__ == "__main__":
    pages.main("programs", __doc__, {PAGE: page})
