"""Figures in words."""

from __future__ import annotations

import time

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SPANS = ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"))


def bytes_text(size: float, *, like: float | None = None) -> str:
    """Three digits are enough in a report: 1.23 GiB, 45.6 MiB, 789 B. ``like``: in the unit of this size."""
    value, unit, shown = float(size), 0, size if like is None else like
    while shown >= 1000 and unit < len(_UNITS) - 1:
        value, shown, unit = value / 1024, shown / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {_UNITS[unit]}"


def age_text(seconds: float) -> str:
    for length, name in _SPANS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    text = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}".removesuffix(".0")
    return f"{text} second" if text == "1" else f"{text} seconds"


def time_text(moment: int | None) -> str:
    """In this machine's time."""
    return "never" if moment is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def plain(text: str) -> str:
    """Without what steers a terminal or turns text around, and what is no character at all."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
