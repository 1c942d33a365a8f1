"""``python -m tests.programs [--write]``: the page of programs, from the records."""

import argparse

from .page import PAGE, page


def main() -> None:
    parser = argparse.ArgumentParser(prog="programs", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write it to docs/{PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
