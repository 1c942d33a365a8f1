"""Pages of docs/ that are made from records: their tables, and the command that writes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a table."""
    columns = list(columns)
    yield line(columns)
    yield line(["---"] * len(columns))
    yield from map(line, rows)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(prog: str, about: str | None, pages: Mapping[Path, Callable[[], str]]) -> None:
    """Print the first page, or with ``--write`` write all of them.

    Args:
        prog: name of the command.
        about: what it does.
        pages: by their files, what makes their text.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    names = " and ".join(file.name for file in pages)
    parser.add_argument("--write", action="store_true", help=f"write {names}")
    if parser.parse_args().write:
        for file, page in pages.items():
            file.write_text(page())
    else:
        print(next(iter(pages.values()))(), end="")
