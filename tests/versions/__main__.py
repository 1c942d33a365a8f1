"""``python -m tests.versions [--write]``: the page of supported versions and the README's table, from the records."""

from .. import pages
from .page import PAGE, page
from .readme import README, readme

if __name__ == "__main__":
    pages.main("versions", __doc__, {PAGE: page, README: readme})
