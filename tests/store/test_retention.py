"""The guards of a prune: they only ever keep more, or hold everything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.errors import Damaged, UsageError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.prune import Candidate, Keep, mark_all
from archiver.store.removal import Hold, Item, RemovalPlan
from archiver.store.retention import Duration, Retention, decide, doubts, plan_prune
from archiver.store.snapshots import SnapshotInfo
from archiver.store.store import Store
from formats.manifest import Manifest
from tests.stores import GROUP, SetClock, make_store, save

DAY = 86400
START = 1_700_000_000
GOOD, BAD = "ok", "failed"


def info(when: int, *, finished: bool = True, protected: bool = False, verified: str | None = None) -> SnapshotInfo:
    unprotected: dict[str, Any] = {}
    if verified is not None:
        upid = f"UPID:here:00000001:00000001:00000001:{when:08X}:verify::root@pam:"
        unprotected["verify_state"] = {"state": verified, "upid": upid}
    manifest = Manifest(GROUP.type, GROUP.id, when, (), unprotected) if finished else None
    return SnapshotInfo(SnapshotRef(GROUP, when), manifest, None, protected, "root@pam")


def days(count: int, **others: Any) -> list[SnapshotInfo]:
    """One a day, the newest first; ``others``: what is different of the n-th."""
    found = [info(START + number * DAY) for number in range(count)]
    for name, values in others.items():
        for number, value in values.items():
            found[number] = info(START + number * DAY, **{name: value})
    return found[::-1]


def kept(items: Sequence[Item]) -> list[int]:
    """Which days are kept."""
    return sorted((item.ref.time - START) // DAY for item in items if item.keep)


def test_without_options_everything_is_kept() -> None:
    found = days(5, finished={1: False})
    items = decide(found, Retention(Keep()))
    assert kept(items) == [0, 1, 2, 3, 4]
    assert {item.reason for item in items} == {"no keep option is given"}
    assert doubts(items, 0) == []


def test_within_alone_removes_what_is_older() -> None:
    """It is counted from the newest finished snapshot, not from now."""
    items = decide(days(10, finished={9: False, 8: False}), Retention(Keep(), Duration(days=3)))
    assert kept(items) == [4, 5, 6, 7, 9]
    assert [item.mark for item in items][:3] == ["keep-partial", "remove", "keep"]


def test_within_adds_to_the_options() -> None:
    assert kept(decide(days(10), Retention(Keep(last=1)))) == [9]
    assert kept(decide(days(10), Retention(Keep(last=1), Duration(days=2)))) == [7, 8, 9]
    assert kept(decide(days(10), Retention(Keep(last=5), Duration(days=2)))) == [5, 6, 7, 8, 9]


def test_last_good_one_is_kept() -> None:
    found = days(10, verified={2: GOOD, 4: GOOD, 6: BAD})
    items = decide(found, Retention(Keep(last=2)))
    assert kept(items) == [4, 8, 9]
    assert [item.reason for item in items if item.ref.time == START + 4 * DAY] == [
        "the newest that was verified and found good"
    ]
    assert kept(decide(days(10, verified={9: GOOD, 4: GOOD}), Retention(Keep(last=2)))) == [8, 9]


def test_damaged_manifest_counts_as_a_snapshot() -> None:
    """As for a PBS: there is one."""
    found = days(3)
    found[0] = found[0]._replace(manifest=None, problem=Damaged("no manifest"))
    items = decide(found, Retention(Keep(last=1)))
    assert kept(items) == [2] and items[0].finished


@pytest.mark.parametrize(
    ("count", "last", "held"), [(2, 1, False), (3, 1, True), (4, 2, False), (5, 2, True), (100, 50, False)]
)
def test_more_than_half(count: int, last: int, held: bool) -> None:
    items = decide(days(count), Retention(Keep(last=last)))
    told = doubts(items, START + 200 * DAY)
    assert told == ([f"{count - last} of {count} snapshots would be removed at once"] if held else [])


def test_unfinished_ones_are_no_loss() -> None:
    found = days(5, finished={0: False, 1: False, 2: False})
    assert doubts(decide(found, Retention(Keep(last=2))), START + 200 * DAY) == []


def test_future() -> None:
    items = decide(days(4), Retention(Keep(last=3)))
    newest = START + 3 * DAY
    assert doubts(items, newest) == doubts(items, newest - 300) == []
    (told,) = doubts(items, newest - 301)
    assert told.startswith("2023-11-17T22:13:20Z is in the future")
    assert doubts(decide(days(4), Retention(Keep(last=4))), 0) == []  # nothing is removed


FOUND = st.lists(
    st.builds(
        info,
        st.integers(START, START + 90 * DAY),
        finished=st.sampled_from([True, True, False]),
        protected=st.sampled_from([False, False, True]),
        verified=st.sampled_from([None, GOOD, BAD]),
    ),
    max_size=25,
    unique_by=lambda each: each.ref.time,
).map(lambda found: sorted(found, key=lambda each: each.ref.time, reverse=True))
COUNTS = st.one_of(st.none(), st.integers(1, 4))
NO = st.just(0)
WITHIN = st.one_of(st.none(), st.builds(Duration, NO, st.integers(0, 2), st.integers(0, 20), NO))


@settings(max_examples=300, deadline=None)
@given(FOUND, st.builds(Keep, COUNTS, COUNTS, COUNTS, *[st.none()] * 3), WITHIN)
def test_guards_only_keep_more(found: list[SnapshotInfo], keep: Keep, within: Duration | None) -> None:
    items = decide(found, Retention(keep, within))
    pure = mark_all([Candidate(each.ref.time, each.finished, each.protected) for each in found], keep)
    assert [item.ref for item in items] == [each.ref for each in found]
    for item, marked, each in zip(items, pure, found, strict=True):
        if marked.mark != "remove":
            assert item.mark == marked.mark and item.reason == marked.reason
        if each.protected:
            assert item.mark == "protected"
    good = [each.ref.time for each in found if each.verify_state and each.verify_state["state"] == GOOD]
    assert not good or any(item.keep and item.ref.time == good[0] for item in items)


# -- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", Duration(days=7)),
        ("1y5m7d2h", Duration(1, 5, 7, 2)),
        ("36h", Duration(hours=36)),
        ("2h1y", Duration(years=1, hours=2)),
    ],
)
def test_durations(text: str, expected: Duration) -> None:
    assert Duration.parse(text) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "7w", "-7d", "7d 2h", "0d", "1d1d", "7D", "9999999d", "1.5d", "²d"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("when", "duration", "expected"),
    [
        ("2024-03-31T12:00:00", Duration(months=1), "2024-02-29T12:00:00"),
        ("2024-02-29T12:00:00", Duration(years=1), "2023-02-28T12:00:00"),
        ("2024-01-15T12:00:00", Duration(months=14, days=15, hours=13), "2022-10-30T23:00:00"),
        ("2024-01-15T12:00:00", Duration(years=60), "1970-01-01T00:00:00"),
        ("2024-01-15T12:00:00", Duration(days=999999), "1970-01-01T00:00:00"),
        ("2024-01-15T12:00:00", Duration(years=999999), "1970-01-01T00:00:00"),
    ],
)
def test_moments_before(when: str, duration: Duration, expected: str) -> None:
    def moment(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())

    assert duration.before(moment(when)) == moment(expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 253402300799), st.builds(Duration, *[st.integers(0, 999999)] * 4))
def test_moments_before_are_earlier(when: int, duration: Duration) -> None:
    assert 0 <= duration.before(when) <= when
    only_days = Duration(days=duration.days)
    assert only_days.before(when) == max(when - duration.days * int(timedelta(days=1).total_seconds()), 0)


# -- plans -----------------------------------------------------------------------------------------------------------


def test_plan_id_is_that_of_the_decisions() -> None:
    first, second = (Item(SnapshotRef(GROUP, when), "keep", "some reason") for when in (1, 2))
    plan = RemovalPlan((first, second))
    assert len(plan.id) == 12
    assert plan.id == RemovalPlan((first._replace(reason="another"), second)).id
    elsewhere = first._replace(ref=SnapshotRef(GroupRef("a", "host", GROUP.id), 1))
    others = [
        RemovalPlan((first,)),
        RemovalPlan((first._replace(mark="remove"), second)),
        RemovalPlan((elsewhere, second)),
        RemovalPlan((first, second), (Hold(GROUP, "why"),)),
    ]
    assert len({plan.id, *(other.id for other in others)}) == 5


def test_plan_of_a_store(tmp_path: Path) -> None:
    """Each group for itself; a clock that went back is noticed."""
    path, source = make_store(tmp_path / "store"), tmp_path / "source"
    source.mkdir()
    other = GroupRef("a", "ct", "7")
    for number in range(4):
        save(path, source, time=START + number * DAY)
    save(path, source, group=other, time=START)
    clock = SetClock(START + 4 * DAY)
    with Store.open(path, clock=clock) as store:
        plan = plan_prune(store, [GROUP, other], Retention(Keep(last=2)))
        assert kept(plan.items) == [0, 2, 3] and plan.holds == ()
        assert [item.ref.time for item in plan.removed] == [START, START + DAY]
        clock.time = START
        plan = plan_prune(store, [GROUP, other], Retention(Keep(last=2)))
        assert [hold.group for hold in plan.holds] == [GROUP]
