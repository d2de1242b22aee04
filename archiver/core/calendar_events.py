"""Calendar events and time spans as a PBS writes them (spec tape.md 7.7).

event   [WEEKDAYS] [[YEAR-]MONTH-DAY] [[HOUR:]MINUTE[:SECOND]] [UTC], at least one part, or a word like ``weekly``
field   ``*``, ``*/N``, or a comma list of ``a``, ``a..b``, ``a/N``, ``a..b/N``
span    numbers with units (``1h 30min``), summed; a bare number is seconds
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from archiver.errors import UsageError

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_LEAST_LETTERS = 3
_LAST_YEAR = 2199
_STEPS = 1000  # after so many changes of a field there is no such time

_WORDS = {
    "minutely": "*:*",
    "hourly": "*:0",
    "daily": "0:0",
    "weekly": "mon 0:0",
    "monthly": "*-1 0:0",
    "quarterly": "1,4,7,10-1 0:0",
    "semiannually": "1,7-1 0:0",
    "semi-annually": "1,7-1 0:0",
    "yearly": "1-1 0:0",
    "annually": "1-1 0:0",
}

_RANGE = re.compile(r"([0-9]{1,6})(?:\.\.([0-9]{1,6}))?(?:/([0-9]{1,6}))?")
_ANY = re.compile(r"\*(?:/([0-9]{1,6}))?")

_SPAN_PART = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)(?![0-9.])\s*([A-Za-zµ]*)")
_SECONDS = {
    ("ns", "nsec", "nanosecond", "nanoseconds"): 1e-9,
    ("us", "µs", "usec", "microsecond", "microseconds"): 1e-6,
    ("ms", "msec", "millisecond", "milliseconds"): 1e-3,
    ("", "s", "sec", "second", "seconds"): 1,
    ("m", "min", "minute", "minutes"): 60,
    ("h", "hr", "hour", "hours"): 3600,
    ("d", "day", "days"): 86400,
    ("w", "week", "weeks"): 7 * 86400,
    ("M", "month", "months"): 2630016,
    ("y", "year", "years"): 31557600,
}
_UNITS = {name: seconds for names, seconds in _SECONDS.items() for name in names}


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """``text`` as it was written; ``seconds``, whole ones are what counts."""

    text: str
    seconds: float

    @staticmethod
    def parse(text: str) -> TimeSpan:
        """Raises UsageError."""
        position, total = 0, 0.0
        stripped = text.strip()
        while position < len(stripped):
            found = _SPAN_PART.match(stripped, position)
            if found is None or found[2] not in _UNITS:
                raise _no_span(text)
            total += float(found[1]) * _UNITS[found[2]]
            position = found.end()
        if not stripped:
            raise _no_span(text)
        return TimeSpan(stripped, total)


def _no_span(text: str) -> UsageError:
    return UsageError(f"{text[:80]!r} is no time span", hint="write for example 30d, 1w 2d or 6M (months)")


@dataclass(frozen=True, slots=True)
class _Field:
    """The numbers that a part of an event may have, ascending; None: any."""

    numbers: tuple[int, ...] | None
    first: int
    last: int

    def at_least(self, value: int) -> int | None:
        """The first number from ``value`` on."""
        if self.numbers is None:
            return value if value <= self.last else None
        return next((number for number in self.numbers if number >= value), None)

    @property
    def lowest(self) -> int:
        return self.first if self.numbers is None else self.numbers[0]


@dataclass(frozen=True, slots=True)
class CalendarEvent:
    """Times that come again; ``text`` as it was written."""

    text: str
    weekdays: frozenset[int]
    year: _Field
    month: _Field
    day: _Field
    hour: _Field
    minute: _Field
    second: _Field
    utc: bool

    @staticmethod
    def parse(text: str) -> CalendarEvent:
        """Raises UsageError."""
        parts = text.split()
        utc = bool(parts) and parts[-1].upper() == "UTC"
        if utc:
            parts.pop()
        if len(parts) == 1 and parts[0].lower() in _WORDS:
            parts = _WORDS[parts[0].lower()].split()
        weekdays: frozenset[int] = frozenset()
        calendar = clock = None
        for number, part in enumerate(parts):
            if part[0].isalpha() and number == 0:
                weekdays = _weekdays(part, text)
            elif "-" in part and calendar is None and clock is None:
                calendar = part
            elif "-" not in part and clock is None and not part[0].isalpha():
                clock = part
            else:
                raise _no_event(text)
        if not parts:
            raise _no_event(text)
        year, month, day = _date(calendar, text)
        hour, minute, second = _time(clock, text)
        return CalendarEvent(" ".join(text.split()), weekdays, year, month, day, hour, minute, second, utc)

    def next_after(self, last: int, zone: tzinfo | None = None) -> int | None:
        """The first such time after ``last``, Unix seconds; None when there is none. ``zone`` other than this
        machine's."""
        if self.utc:
            zone = UTC
        start = last + 1
        try:
            begin = datetime.fromtimestamp(start, zone) if zone else datetime.fromtimestamp(start).astimezone()
        except (OverflowError, OSError, ValueError):
            return None
        return self._from(begin.replace(tzinfo=None, fold=0), start, zone)

    def _from(self, begin: datetime, start: int, zone: tzinfo | None) -> int | None:
        now: datetime | None = begin
        for _ in range(_STEPS):
            if now is None:
                return None
            moved = self._step(now)
            if moved is now:
                epoch = _epoch(now, zone)
                if epoch is not None and epoch >= start:
                    return epoch
                moved = now + timedelta(seconds=1)  # a wall time that this day skips, or had twice
            now = moved
        return None

    def _step(self, now: datetime) -> datetime | None:
        """The same time when it fits; else a later one, with what is below the first misfit at its lowest."""
        year = self.year.at_least(now.year)
        if year is None or year > _LAST_YEAR:
            return None
        if year != now.year:
            return self._first_of(year, 1)
        month = self.month.at_least(now.month)
        if month is None:
            return self._first_of(now.year + 1, 1)
        if month != now.month:
            return self._first_of(now.year, month)
        day = self.day.at_least(now.day)
        if day is None or not _exists(now.year, now.month, day):
            return self._first_of(now.year + now.month // 12, now.month % 12 + 1)
        if day != now.day:
            return datetime(now.year, now.month, day)
        midnight = datetime(now.year, now.month, now.day)
        if self.weekdays and now.weekday() not in self.weekdays:
            return midnight + timedelta(days=1)
        hour = self.hour.at_least(now.hour)
        if hour is None:
            return midnight + timedelta(days=1)
        if hour != now.hour:
            return midnight.replace(hour=hour)
        minute = self.minute.at_least(now.minute)
        if minute is None:
            return midnight + timedelta(hours=hour + 1)
        if minute != now.minute:
            return midnight.replace(hour=hour, minute=minute)
        second = self.second.at_least(now.second)
        if second is None:
            return midnight + timedelta(hours=hour, minutes=minute + 1)
        return now if second == now.second else now.replace(second=second)

    def _first_of(self, year: int, month: int) -> datetime | None:
        return datetime(year, month, 1) if year <= _LAST_YEAR else None


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _epoch(wall: datetime, zone: tzinfo | None) -> int | None:
    """Unix seconds of a time on the wall; None where the clock jumps over it."""
    try:
        there = wall.replace(tzinfo=zone) if zone else wall.astimezone()
        epoch = int(there.timestamp())
        back = datetime.fromtimestamp(epoch, there.tzinfo or UTC) if zone else datetime.fromtimestamp(epoch)
    except (OverflowError, OSError, ValueError):
        return None
    return epoch if back.replace(tzinfo=None, fold=0) == wall.replace(fold=0) else None


def _no_event(text: str) -> UsageError:
    return UsageError(
        f"{text[:80]!r} is no calendar event", hint="write for example daily, sat 18:15, mon..fri 2:30 or *-1 4:00"
    )


def _weekdays(part: str, text: str) -> frozenset[int]:
    found: set[int] = set()
    for piece in part.split(","):
        first, separator, last = piece.partition("..")
        start = _weekday(first, text)
        end = _weekday(last, text) if separator else start
        found.update((start + number) % 7 for number in range((end - start) % 7 + 1))
    return frozenset(found)


def _weekday(name: str, text: str) -> int:
    if len(name) >= _LEAST_LETTERS:
        for number, day in enumerate(_DAYS):
            if day.startswith(name.lower()):
                return number
    raise _no_event(text)


def _date(part: str | None, text: str) -> tuple[_Field, _Field, _Field]:
    pieces = ["*", "*", "*"] if part is None else part.split("-")
    if len(pieces) == 2:
        pieces.insert(0, "*")
    if len(pieces) != 3:
        raise _no_event(text)
    year, month, day = pieces
    return _field(year, 0, _LAST_YEAR, text), _field(month, 1, 12, text), _field(day, 1, 31, text)


def _time(part: str | None, text: str) -> tuple[_Field, _Field, _Field]:
    pieces = ["0", "0", "0"] if part is None else part.split(":")
    if len(pieces) == 1:
        pieces.insert(0, "*")
    if len(pieces) == 2:
        pieces.append("0")
    if len(pieces) != 3:
        raise _no_event(text)
    hour, minute, second = pieces
    return _field(hour, 0, 23, text), _field(minute, 0, 59, text), _field(second, 0, 59, text)


def _field(part: str, first: int, last: int, text: str) -> _Field:
    numbers: set[int] = set()
    for piece in part.split(","):
        any_number = _ANY.fullmatch(piece)
        if any_number is not None:
            if any_number[1] is None:
                return _Field(None, first, last)
            numbers.update(_every(first, last, any_number[1], text))
            continue
        found = _RANGE.fullmatch(piece)
        if found is None:
            raise _no_event(text)
        start = int(found[1])
        end = int(found[2]) if found[2] else last if found[3] else start
        if not first <= start <= end <= last:
            raise _no_event(text)
        numbers.update(_every(start, end, found[3] or "1", text))
    return _Field(tuple(sorted(numbers)), first, last)


def _every(start: int, end: int, step: str, text: str) -> range:
    if not int(step):
        raise _no_event(text)
    return range(start, end + 1, int(step))
