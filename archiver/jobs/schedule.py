"""When a job is to be run, as systemd and as the clock say it. Times are local ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from archiver.jobs.history import SKEW, Run
from archiver.jobs.profile import Schedule

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = 8  # days to look back: the same weekday, an hour earlier in the day


def calendar_lines(schedule: Schedule) -> list[str]:
    """Values of systemd's OnCalendar, see systemd.time(7)."""
    days = ",".join(day.title() for day in schedule.days)
    return [f"{days + ' ' if days else ''}*-*-* {hour:02d}:{minute:02d}:00" for hour, minute in schedule.at]


def last_due(schedule: Schedule, now: int) -> int | None:
    """The latest moment until ``now`` at which a run was to begin; None when there is none: it is not for the clock."""
    return max((moment for moment in _moments(schedule, now) if moment <= now), default=None)


def is_due(schedule: Schedule, runs: Sequence[Run], now: int) -> bool:
    """Whether no run has ended since the schedule wanted one last. One that crashed or was put off does not count, nor
    one of single steps without a backup, nor one of a time that is still to come: the clock was wrong then, and who
    trusted it would not run the job for years."""
    due = last_due(schedule, now)
    return due is not None and not any(due <= run.began <= now + SKEW and _is_whole(run) for run in runs)


def _is_whole(run: Run) -> bool:
    return run.state == "done" and not run.is_put_off and bool(run.steps_named("backup"))


def _moments(schedule: Schedule, now: int) -> Iterator[int]:
    today = time.localtime(now)
    for back in range(_WEEK):
        for hour, minute in schedule.at:
            day = (today.tm_year, today.tm_mon, today.tm_mday - back, hour, minute, 0, 0, 0, -1)
            moment = int(time.mktime(day))
            if not schedule.days or _DAYS[time.localtime(moment).tm_wday] in schedule.days:
                yield moment
