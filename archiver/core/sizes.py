"""Sizes as a person writes them."""

from __future__ import annotations

import re

from archiver.errors import UsageError

LARGEST = (1 << 63) - 1  # bytes; no file has more

_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*([KMGTP]?)i?B?", re.IGNORECASE | re.ASCII)
_UNITS = " KMGTP"


def parse_size(text: str, name: str = "", *, least: int = 0, hint: str = "write for example 500K, 20M or 1.5G") -> int:
    """Bytes of ``4096``, ``500K``, ``20 MiB``, ``1.5gb``: units are powers of 1024, with or without ``i`` and ``B``.

    At most LARGEST. Raises UsageError for less than ``least``, too; ``name`` is that of what is set.
    """
    found = _SIZE.fullmatch(text.strip())
    size = -1
    if found is not None:
        whole, part, unit = found.groups(default="")
        shift = 10 * _UNITS.index(unit.upper() or " ")
        size = (int(whole + part) << shift) // 10 ** len(part)
    if size < least:
        raise UsageError(f"{name} {text!r} is no size".lstrip(), hint=hint)
    return min(size, LARGEST)
