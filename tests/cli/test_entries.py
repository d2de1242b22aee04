"""How entries are shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random

import pytest

from archiver.cli import entries
from archiver.cli.entries import time_text

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Monrovia")


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        entries._offset.cache_clear()
        yield request.param
    time.tzset()
    entries._offset.cache_clear()


def plainly(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def test_moments_are_told_in_local_time(zone: str) -> None:
    """Also on days when the clocks are set, before 1970, and where there is no such year."""
    random = Random(zone)
    moments = [random.randrange(-(1 << 33), 1 << 33) for _ in range(2000)]
    moments += [random.randrange(-(1 << 63), 1 << 63) for _ in range(200)]
    moments += [random.randrange(67_767_976_000_000_000, 67_767_977_000_000_000) for _ in range(200)]  # the last year
    for day in range(1_700_000_000, 1_732_000_000, 86_400):
        moments += [day + random.randrange(86_400), day - day % 86_400, day - day % 86_400 - 1]
    for moment in moments:
        assert time_text(moment) == plainly(moment)


def test_the_local_time_of_a_day_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    localtime = time.localtime

    def watched(seconds: int) -> time.struct_time:
        asked.append(seconds)
        return localtime(seconds)

    entries._offset.cache_clear()
    monkeypatch.setattr(time, "localtime", watched)
    for second in range(1_700_006_400, 1_700_092_800, 100):
        time_text(second)
    assert len(asked) == 2
