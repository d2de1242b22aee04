"""The pure algorithm: golden marks of the reference implementation, and a second one that is written the naive way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.store.prune import Candidate, Keep, LocalTime, mark_all
from tests.golden_data import GOLDEN

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "prune.json").read_text())


def candidates(case: dict[str, Any]) -> list[Candidate]:
    return [
        Candidate(entry["time"], entry.get("finished", True), entry.get("protected", False))
        for entry in case["backups"]
    ]


def options(case: dict[str, Any]) -> Keep:
    return Keep(**{name.removeprefix("keep-"): count for name, count in case["keep"].items()})


def clock_of(zone: str) -> LocalTime:
    return lambda when: datetime.fromtimestamp(when, ZoneInfo(zone)).timetuple()


@pytest.fixture
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The process is in the zone of the parameter ``case``."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = CASES[request.getfixturevalue("number")]["tz"]
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) == 31 and {case["tz"] for case in CASES} == {"UTC", "Europe/Berlin", "America/New_York"}
    found = {mark for case in CASES for _, mark in case["result"]}
    assert found == {"keep", "keep-partial", "protected", "remove"}


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.usefixtures("zone")
def test_golden(number: int) -> None:
    """In the time zone of the process, and in one that is handed in."""
    case = CASES[number]
    expected = [(when, mark) for when, mark in case["result"]]
    for local_time in (time.localtime, clock_of(case["tz"])):
        marked = mark_all(candidates(case), options(case), local_time)
        assert [(entry.time, entry.mark) for entry in marked] == expected


def test_example_of_the_specification() -> None:
    def at(day: str, hour: int) -> int:
        return int(datetime.fromisoformat(f"2026-{day}T{hour:02}:00:00+00:00").timestamp())

    days = ["02-28 20", "03-01 08", "03-01 20", "03-02 08", "03-02 20", "03-03 08", "03-03 20"]
    found = [Candidate(at(day[:5], int(day[6:]))) for day in days]
    marked = mark_all(found, Keep(last=1, daily=2, monthly=1), clock_of("UTC"))
    assert [(entry.mark, entry.reason) for entry in marked] == [
        ("keep", "keep-last 1 of 1"),
        ("remove", "no keep option takes it"),
        ("keep", "keep-daily 1 of 2 (2026/03/02)"),
        ("remove", "keep-daily has a newer one (2026/03/02)"),
        ("keep", "keep-daily 2 of 2 (2026/03/01)"),
        ("remove", "keep-daily has a newer one (2026/03/01)"),
        ("keep", "keep-monthly 1 of 1 (2026/02)"),
    ]


def test_last_possible_time_has_a_period_everywhere() -> None:
    """It is in the year 10000 east of Greenwich."""
    assert mark_all([Candidate(253402300799)], Keep(yearly=1), lambda when: time.gmtime(when + 7200))[0].mark == "keep"


def test_duplicate_hours_when_summer_ends_are_one_period() -> None:
    """As text both are 02."""
    summer = int(datetime(2026, 10, 25, 0, 30, tzinfo=ZoneInfo("UTC")).timestamp())
    found = mark_all([Candidate(summer), Candidate(summer + 3600)], Keep(hourly=2), clock_of("Europe/Berlin"))
    assert [entry.mark for entry in found] == ["keep", "remove"]


# -- against a second implementation ---------------------------------------------------------------------------------


def period(option: str, when: int, zone: str) -> tuple[int, ...]:
    local = datetime.fromtimestamp(when, ZoneInfo(zone))
    return {
        "last": (when,),
        "hourly": (local.toordinal(), local.hour),
        "daily": (local.toordinal(),),
        "weekly": tuple(local.isocalendar()[:2]),
        "monthly": (local.year, local.month),
        "yearly": (local.year,),
    }[option]


def naive(found: list[Candidate], keep: Keep, zone: str) -> dict[int, str]:
    """Option by option over sets: what is undecided is grouped by period, and whole periods are decided at once."""
    protected = {each.time for each in found if each.protected}
    unfinished = {each.time for each in found if not each.finished}
    newest = max((each.time for each in found), default=None)
    kept: set[int] = set()
    lost: set[int] = set()
    for option in Keep._fields:
        count = getattr(keep, option)
        if count is None:
            continue
        open_ones = {each.time for each in found} - protected - unfinished - kept - lost
        covered = {period(option, when, zone) for when in kept}
        groups: dict[tuple[int, ...], list[int]] = {}
        for when in open_ones:
            if period(option, when, zone) not in covered:
                groups.setdefault(period(option, when, zone), []).append(when)
        ranked = sorted((sorted(group) for group in groups.values()), key=lambda group: group[-1], reverse=True)
        taken = ranked[:count]
        stop = max((group[-1] for group in ranked[count : count + 1]), default=-1)
        for group in taken:
            kept.add(group[-1])
            lost |= {when for when in group[:-1] if when > stop}  # the option ends at the first one it has no room for
    result = {}
    for each in found:
        if each.protected:
            result[each.time] = "protected"
        elif not each.finished:
            result[each.time] = "keep-partial" if each.time == newest else "remove"
        else:
            result[each.time] = "keep" if each.time in kept else "remove"
    return result


START = int(datetime(2023, 12, 25, tzinfo=ZoneInfo("UTC")).timestamp())
TIMES = st.one_of(
    st.integers(START, START + int(timedelta(days=3).total_seconds())),
    st.integers(START, START + int(timedelta(days=40).total_seconds())),
    st.integers(START, START + int(timedelta(days=1500).total_seconds())),
)
FOUND = st.lists(
    st.builds(Candidate, TIMES, st.sampled_from([True, True, True, False]), st.sampled_from([False, False, True])),
    max_size=40,
    unique_by=lambda each: each.time,
)
COUNTS = st.one_of(st.none(), st.integers(0, 6))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Kathmandu"])


@settings(max_examples=600, deadline=None)
@given(FOUND, st.builds(Keep, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), ZONES)
def test_same_as_the_naive_one(found: list[Candidate], keep: Keep, zone: str) -> None:
    marked = mark_all(found, keep, clock_of(zone))
    assert [entry.time for entry in marked] == sorted((each.time for each in found), reverse=True)
    assert {entry.time: entry.mark for entry in marked} == naive(found, keep, zone)


@settings(max_examples=100, deadline=None)
@given(FOUND, st.integers(1, 50))
def test_protected_ones_use_no_slot(found: list[Candidate], count: int) -> None:
    marked = mark_all(found, Keep(last=count), clock_of("UTC"))
    usual = sum(each.finished and not each.protected for each in found)
    assert sum(entry.mark == "keep" for entry in marked) == min(count, usual)
    assert {entry.time for entry in marked if entry.mark == "protected"} == {e.time for e in found if e.protected}
