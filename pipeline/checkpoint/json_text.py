"""JSON that others wrote, taken value by value.

`json.loads` makes objects of a whole text before anybody looks at them: 21 MiB of `[]` become 600 MB.
Here a value that is not wanted is gone before the next one, and none is longer than it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

from pipeline.checkpoint import outside

MOST_CHARACTERS = 8192
"""Of one value: 64 dimensions of a tensor take 1,500."""
_MOST_NESTED = 8

_SPACE = re.compile(r"[ \t\n\r]*")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key appears twice")
    return members


_DECODE = JSONDecoder(object_pairs_hook=_without_duplicates).raw_decode


class JsonText:
    """A text that is walked from its beginning; everything raises ValueError where it is malformed."""

    def __init__(self, data: bytes) -> None:
        self._text = data.decode("utf-8")
        self._at = _after_space(self._text, 0)

    @property
    def next(self) -> str:
        """The character that the next value begins with; empty at the end."""
        return self._text[self._at : self._at + 1]

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here.

        Before the next key is asked for the caller takes the value: `value`, `string`, `skip` or
        the `members` of that.
        """
        self._expect("{")
        if self.next != "}":
            while True:
                key = self.string()
                self._expect(":")
                yield key
                if self.next != ",":
                    break
                self._expect(",")
        self._expect("}")

    def items(self) -> Iterator[None]:
        """Stop at each value of the array that begins here, which the caller takes as of `members`."""
        self._expect("[")
        if self.next != "]":
            while True:
                yield
                if self.next != ",":
                    break
                self._expect(",")
        self._expect("]")

    def string(self) -> str:
        """Return the string that begins here, whatever its length."""
        if self.next != '"':
            raise ValueError(f"expected a string at character {self._at:,}")
        decoded, end = _DECODE(self._text, self._at)
        self._at = _after_space(self._text, end)
        return outside.text(decoded)

    def value(self) -> Any:
        """Return the value that begins here, of at most MOST_CHARACTERS."""
        ahead = self._text[self._at : self._at + MOST_CHARACTERS]
        cut = self._at + len(ahead) < len(self._text)
        try:
            decoded, length = _DECODE(ahead)
        except RecursionError:
            raise ValueError(f"too deeply nested at character {self._at:,}") from None
        except JSONDecodeError as error:
            what = f"a value of more than {MOST_CHARACTERS:,} characters, or " if cut else ""
            raise ValueError(f"{what}{error.msg} at character {self._at + error.pos:,}") from None
        if cut and length == len(ahead):
            raise ValueError(f"a value of more than {MOST_CHARACTERS:,} characters")
        self._at = _after_space(self._text, self._at + length)
        return decoded

    def skip(self, depth: int = 0) -> None:
        """Pass over the value that begins here; what is in objects may be of any length."""
        if self.next == "{" and depth < _MOST_NESTED:
            for _ in self.members():
                self.skip(depth + 1)
        elif self.next == '"':
            self.string()
        else:
            self.value()

    def end(self) -> None:
        """Check that nothing follows."""
        if self.next:
            raise ValueError(f"more than one value, the second at character {self._at:,}")

    def _expect(self, character: str) -> None:
        if self.next != character:
            raise ValueError(f"expected {character!r} at character {self._at:,}")
        self._at = _after_space(self._text, self._at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
