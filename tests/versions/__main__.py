"""``python -m tests.versions [--write]``: the page of supported versions and the README's table, from the records."""

import argparse

from .page import PAGE, page
from .readme import README, readme


def main() -> None:
    parser = argparse.ArgumentParser(prog="versions", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name} and {README.name}")
    if parser.parse_args().write:
        PAGE.write_text(page())
        README.write_text(readme())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
