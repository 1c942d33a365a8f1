"""``python -m tests.versions [--write]``: the page of supported versions, from the records."""

from .. import pages
from .page import PAGE, page

if __name__ == "__main__":
    pages.main("versions", __doc__, {PAGE: page})
