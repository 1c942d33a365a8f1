"""What is written as JSON and as a page, and read back: traces and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..engine.tables import Shown

T = TypeVar("T", bound="Saved")


class Saved(Shown):
    """Rows of words and numbers that go to a file.

    Attributes:
        FORMAT: what the JSON says of itself.
    """

    FORMAT: ClassVar[str]

    def to_json(self, file: str | Path | None = None) -> str:
        """All of it as JSON, written to ``file`` if one is given.

        Args:
            file: where to.

        Returns:
            The text.

        Raises:
            OSError: there is no such folder, or the file cannot be written.

        Examples:
            >>> text = trace.to_json("trace.json")
            >>> print(text[:39])
            { "format": "qlora_bf16_patch trace 1"
        """
        return _written(json.dumps({"format": self.FORMAT, **self._fields()}, indent=1), file)

    def to_html(self, file: str | Path | None = None) -> str:
        """A page of HTML, written to ``file`` if one is given.

        It is one file, loads nothing from elsewhere and needs no server.

        Args:
            file: where to.

        Returns:
            The text.

        Raises:
            OSError: there is no such folder, or the file cannot be written.

        Examples:
            >>> print(trace.to_html("trace.html")[:15])
            <!doctype html>
        """
        return _written(self._page(), file)

    @classmethod
    def from_json(cls: type[T], source: str | Path) -> T:
        """What ``to_json`` has returned, or the file that it has written, as an object again.

        Args:
            source: the text, or where the file is.

        Returns:
            An object of this class.

        Raises:
            ValueError: it is no such JSON.
            OSError: there is no such file.

        Examples:
            >>> from qlora_bf16_patch.inspection import Report, Trace
            >>> Trace.from_json(trace.to_json()).casts == trace.casts
            True
            >>> Report.from_json(trace.to_json())
            Traceback (most recent call last):
                ...
            ValueError: the text is no report: ValueError: its format is 'qlora_bf16_patch trace 1'. Report.to_json
            writes one.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        what = "the text" if is_text else str(source)
        try:
            found = json.loads(str(source) if is_text else Path(source).read_text())
        except (ValueError, RecursionError) as error:
            raise cls._none(what, error) from error
        return cls.of(found, what)

    @classmethod
    def of(cls: type[T], found: Any, what: str) -> T:
        """The same of JSON that was parsed already.

        Args:
            found: what was parsed.
            what: where it was found, for the error.

        Returns:
            An object of this class.

        Raises:
            ValueError: it is no such JSON.

        Examples:
            >>> import json
            >>> type(trace).of(json.loads(trace.to_json()), "a text").phases
            ('training', 'generation')
        """
        try:
            if found["format"] != cls.FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            return cls._made_of(found)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise cls._none(what, error) from error

    @classmethod
    def _none(cls, what: str, error: Exception) -> ValueError:
        name = cls.__name__
        return ValueError(f"{what} is no {name.lower()}: {type(error).__name__}: {error}. {name}.to_json writes one.")

    def _fields(self) -> dict[str, Any]:
        """The JSON but for its format."""
        raise NotImplementedError

    @classmethod
    def _made_of(cls: type[T], found: dict[str, Any]) -> T:
        """An object of such JSON; what is wrong with it is one of the errors that ``of`` tells."""
        raise NotImplementedError

    def _page(self) -> str:
        raise NotImplementedError


def _written(text: str, file: str | Path | None) -> str:
    if file is not None:
        Path(file).write_text(text, encoding="utf-8")
    return text
