r"""The words of a line that is typed in the catalog shell, and names as they are typed.

    word     = 1*( quoted | "\" escape | byte )          blanks separate words
    quoted   = "'" ... "'" | '"' ... '"'                 as it stands, but for "\" in the second
    escape   = "n" | "t" | "r" | "xHH" | "uHHHH" | "UHHHHHHHH" | any other character, which stands for itself

So what a listing shows of a strange name can be typed. ``\xHH`` is a byte.
"""

from __future__ import annotations

import re

from archiver.errors import UsageError

_CONTROL = {"n": "\n", "t": "\t", "r": "\r"}
_NUMBER = re.compile(r"x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}")
_SPECIAL = " \\'\""


def split(line: str) -> list[str]:
    """The words; bytes that are no characters are surrogates, as in ``os.fsdecode``. Raises UsageError."""
    words, open_quote = _split(line)
    if open_quote:
        raise UsageError(f"the quote {open_quote} is not closed")
    return [word for _, word in words]


def last_word(line: str) -> tuple[int, str, int]:
    """(where the word begins that is being typed at the end of ``line``, what it is so far, how many come before)."""
    words, open_quote = _split(line)
    if words and (open_quote or not line[-1:].isspace() or line.endswith("\\ ")):
        start, word = words[-1]
        return start, word, len(words) - 1
    return len(line), "", len(words)


def _split(line: str) -> tuple[list[tuple[int, str]], str]:
    """((where it begins, word) of each; the quote that is open at the end)."""
    words: list[tuple[int, str]] = []
    word: list[str] | None = None
    start, at, quote = 0, 0, ""
    while at < len(line):
        char = line[at]
        at += 1
        if word is None:
            if char.isspace():
                continue
            word, start = [], at - 1
        if quote:
            if char == quote:
                quote = ""
                continue
            if char != "\\" or quote == "'":
                word.append(char)
                continue
        elif char.isspace():
            words.append((start, "".join(word)))
            word = None
            continue
        elif char in "'\"":
            quote = char
            continue
        if char == "\\" and at < len(line):
            char, at = _escape(line, at)
        word.append(char)
    if word is not None:
        words.append((start, "".join(word)))
    return words, quote


def _escape(line: str, at: int) -> tuple[str, int]:
    """What stands behind a backslash, and the place behind that."""
    number = _NUMBER.match(line, at)
    if number is None:
        return _CONTROL.get(line[at], line[at]), at + 1
    value = int(number.group()[1:], 16)
    if line[at] == "x":
        return (chr(value) if value < 0x80 else chr(0xDC00 + value)), number.end()
    return (chr(value) if value < 0x110000 else line[at]), number.end()


def quote(name: bytes) -> str:
    """A name as it can be typed."""
    text = name.decode("utf-8", "surrogateescape")
    if not text:
        return "''"
    return "".join(map(_quoted, text))


def _quoted(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char in _SPECIAL:
        return "\\" + char
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
