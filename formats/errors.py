"""What can be wrong with bytes or with a key: one tree under :class:`FormatError`."""

from __future__ import annotations

from typing import Any


class FormatError(ValueError):
    """Bytes that do not follow their format.

    ``what`` names the item in a few words ("dynamic index entry 3: end offset"), ``offset`` is the byte position in
    the file or stream where it was found (None when no position makes sense), ``expected`` and ``got`` are shown with
    ``str`` when given.
    """

    def __init__(self, what: str, *, offset: int | None = None, expected: Any = None, got: Any = None) -> None:
        self.what = what
        self.offset = offset
        self.expected = expected
        self.got = got
        super().__init__(what, offset, expected, got)

    def __str__(self) -> str:
        text = self.what
        if self.offset is not None:
            text += f" at offset {self.offset}"
        if self.expected is not None:
            text += f": expected {self.expected}"
            if self.got is not None:
                text += f", got {self.got}"
        elif self.got is not None:
            text += f": got {self.got}"
        return text


class IntegrityError(FormatError):
    """A checksum, authentication tag, digest or signature does not match: the bytes were damaged or altered."""


class KeyMissing(FormatError):
    """The bytes are encrypted or signed and no key was given."""


class WrongKey(FormatError):
    """A key or passphrase was given, and it is not the right one."""


class LimitExceeded(FormatError):
    """A length is larger than the format (or this reader) allows; nothing of that size was allocated."""
