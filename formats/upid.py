"""Task ids as PBS writes them into the verify state of a manifest (spec blob-index-crypto.md 8.1).

    UPID:<node>:<pid %08X>:<pstart %08X>:<task %08X>:<start %08X>:<type>:<id>:<owner>:

node: one label of a host name. pstart: when the process began, in clock ticks since the machine did; 8 or 9 digits.
task: 8 to 16 digits. start: Unix seconds. type and owner have neither colons nor blanks; id may be empty, and of other
characters than letters, digits, ``_`` and ``.`` it has ``\\xNN``, and ``-`` for ``/``. A PBS takes a state with any
other id for none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from formats.errors import FormatError

_NODE = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_UPID = re.compile(
    rf"UPID:({_NODE}):([0-9A-Fa-f]{{8}}):([0-9A-Fa-f]{{8,9}}):([0-9A-Fa-f]{{8,16}}):([0-9A-Fa-f]{{8}}):"
    r"([^:\s]+):([^:\s]*):([^:\s]+):"
)
_PLAIN = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.")
_LIMITS = {"pid": 32, "process_start": 36, "task": 64, "start": 32}  # bits


@dataclass(frozen=True, slots=True)
class Upid:
    """``id`` is not escaped. Making one raises FormatError for values that no task id can have."""

    node: str
    pid: int
    process_start: int
    task: int
    start: int
    type: str
    id: str
    owner: str

    def __post_init__(self) -> None:
        for name, bits in _LIMITS.items():
            if not 0 <= getattr(self, name) < 1 << bits:
                raise FormatError(f"task id: {name}", expected=f"{bits} bits", got=str(getattr(self, name)))
        if not _UPID.fullmatch(self._text()):
            raise FormatError("task id", expected="a host name and words without colons", got=ascii(self)[:200])

    def _text(self) -> str:
        numbers = ":".join(f"{number:08X}" for number in (self.pid, self.process_start, self.task, self.start))
        return f"UPID:{self.node}:{numbers}:{self.type}:{_escaped(self.id)}:{self.owner}:"

    def encode(self) -> str:
        return self._text()

    @classmethod
    def decode(cls, text: str) -> Upid:
        """FormatError for anything that a PBS would not read."""
        match = _UPID.fullmatch(text)
        if match is None:
            raise FormatError(
                "task id", expected="UPID:node:pid:pstart:task:start:type:id:owner:", got=ascii(text)[:80]
            )
        node, *numbers, kind, escaped, owner = match.groups()
        pid, process_start, task, start = (int(number, 16) for number in numbers)
        return cls(node, pid, process_start, task, start, kind, _unescaped(escaped), owner)


def node_name(host: str) -> str:
    """The node of a machine with this host name."""
    return re.sub(r"[^A-Za-z0-9-]", "", host.split(".")[0]).strip("-") or "localhost"


def _escaped(text: str) -> str:
    parts = []
    for position, byte in enumerate(text.encode("utf-8", "surrogateescape")):
        char = chr(byte)
        if char == "/":
            parts.append("-")
        elif char in _PLAIN and (position or char != "."):
            parts.append(char)
        else:
            parts.append(f"\\x{byte:02x}")
    return "".join(parts)


def _unescaped(text: str) -> str:
    plain = re.sub(
        rb"\\x([0-9a-fA-F]{2})|-",
        lambda match: bytes([int(match[1], 16)]) if match[1] else b"/",
        text.encode("utf-8", "surrogateescape"),
    )
    return plain.decode("utf-8", "surrogateescape")
