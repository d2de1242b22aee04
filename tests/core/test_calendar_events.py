"""Calendar events and time spans: the vectors of the reference, and times of this machine's zone."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.core.calendar_events import CalendarEvent, TimeSpan
from archiver.errors import UsageError

HOUR, DAY = 3600, 86400


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("event", "last", "expected"),
    [
        ("mon 2:50", 0, 4 * DAY + 2 * HOUR + 50 * 60),
        ("4..10/2:0", 5 * HOUR, 6 * HOUR),
        ("5/2:0", 5 * HOUR, 7 * HOUR),
        ("02-29", 0, moment("1972-02-29")),
        ("2020-7..9-2/2", moment("2020-07-31"), moment("2020-08-02")),
        ("2021-02-29", 0, None),
        ("monthly", 0, 31 * DAY),
        ("*:3:5", 0, 185),
        ("*:0/2", 0, 120),
        ("*:0/2", 119, 120),
        ("minutely", 59, 60),
        ("hourly", 0, HOUR),
        ("daily", 0, DAY),
        ("weekly", 0, 4 * DAY),
        ("quarterly", 0, 90 * DAY),
        ("semiannually", 0, 181 * DAY),
        ("yearly", 0, 365 * DAY),
        ("fri..mon 12:00", 12 * HOUR, DAY + 12 * HOUR),  # a range that wraps; the 1st was a Thursday
        ("Thursday,saturd 1:00", HOUR, 2 * DAY + HOUR),
        ("30", 0, 1800),
        ("15:00 UTC", 0, 15 * HOUR),
        ("*:*:*", 7, 8),
        ("2199-12-31 23:59:59", 0, moment("2199-12-31T23:59:59")),
        ("2-30", 0, None),
    ],
)
def test_next(event: str, last: int, expected: int | None) -> None:
    assert CalendarEvent.parse(event).next_after(last, UTC) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "UTC", "mo 1:00", "xyz", "24:00", "1:60", "1:1:60", "10..4:0", "*/0:0", "13-1", "1-32", "0-1", "1-0",
        "2200-1-1", "1-1-1-1", "1:2:3:4", "mon tue", "1:00 mon", "1:00 1-1", "~", "1.5:0", "-", "mon..", "*:1e3",
        "٣:00",
        "1:00 utc 3", "*" * 10_000, "9999999999:0",
    ],
)  # fmt: skip
def test_no_event(text: str) -> None:
    with pytest.raises(UsageError):
        CalendarEvent.parse(text)


def test_clock_changes() -> None:
    """Where the clock jumps over the time it is the next day's; where it shows it twice, it comes once."""
    berlin = ZoneInfo("Europe/Berlin")
    event = CalendarEvent.parse("2:30")
    assert event.next_after(moment("2026-03-28T02:00"), berlin) == moment("2026-03-30T00:30")
    first = event.next_after(moment("2026-10-24T12:00"), berlin)
    assert first == moment("2026-10-25T00:30")
    assert event.next_after(first, berlin) == moment("2026-10-26T01:30")
    assert CalendarEvent.parse("2:30 UTC").next_after(moment("2026-03-28T12:00"), berlin) == moment("2026-03-29T02:30")


def test_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert CalendarEvent.parse("daily").next_after(moment("2026-01-01T12:00")) == moment("2026-01-02T05:00")
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.integers(0, 7_000_000_000), st.sampled_from(["*:0/7", "sat 3:00", "*-29 5:5:5", "mon..wed", "12..18/3:*/20"]))
def test_it_is_the_smallest(last: int, text: str) -> None:
    event = CalendarEvent.parse(text)
    found = event.next_after(last, UTC)
    assert found is not None and found > last
    assert event.next_after(found - 1, UTC) == found
    between = (last + found) // 2
    assert event.next_after(between, UTC) == (found if between < found else event.next_after(found, UTC))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120), ("1h 30min", 5400), ("1h30m", 5400), ("2d", 2 * DAY), ("1w", 7 * DAY), ("1M", 2630016),
        ("1y", 31557600), ("500ms", 0.5), ("1.5h", 5400), ("3 months", 3 * 2630016), ("10s 5m", 310), ("0", 0),
    ],
)  # fmt: skip
def test_span(text: str, seconds: float) -> None:
    assert TimeSpan.parse(text).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "h", "1x", "-1h", "1h,2h", "1e9", "9" * 30, "٣h"])
def test_no_span(text: str) -> None:
    with pytest.raises(UsageError):
        TimeSpan.parse(text)
