"""Status, expiry, the start of a session and what is allocated: the rules of the reference and its vectors."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from archiver.errors import Locked
from archiver.tape.state import rules
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, InventoryFile, Location, Medium
from archiver.tape.state.pools import Pool
from archiver.tape.state.session import NoMediaLeft, WriteSession, candidates, choose_set
from formats.tape.content import encode_uuid
from formats.tape.labels import NO_SET, MediaSetLabel
from tests.tape.sets import StoppedClock, in_set, inventory_of, medium, new_place, online, store, uuid_of

DAYS = 86400


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def pool(allocation: str = "continue", retention: str = "keep", **rest: object) -> Pool:
    return Pool.make("pp", allocation=allocation, retention=retention, **rest)  # type: ignore[arg-type]


def three_sets() -> tuple[Inventory, list[Medium]]:
    media = [in_set(medium(f"T{n}"), "pp", f"set {n}", 0, 60 * n) for n in range(3)]
    return inventory_of(*media), media


# -- expiry ------------------------------------------------------------------------------------------------------------


def test_expiry_vectors() -> None:
    """Those of the reference's own tests."""
    inventory, (first, second, third) = three_sets()
    event = pool("*:0/2", "120s")
    assert rules.expire_time(inventory, first, event) == 180
    assert rules.expire_time(inventory, second, event) == 240
    assert not rules.is_expired(inventory, first, event, 179) and rules.is_expired(inventory, first, event, 180)
    assert not rules.is_expired(inventory, third, event, 10**6)  # it is written still
    alone = in_set(medium("A"), "pp", "one", 0, 10)
    assert rules.expire_time(inventory_of(alone), alone, pool("always", "12s")) == 22


@pytest.mark.parametrize(
    ("allocation", "retention", "expected"),
    [
        ("continue", "keep", (None, None, None)),
        ("always", "keep", (None, None, None)),
        ("continue", "overwrite", (60, 120, None)),
        ("always", "overwrite", (0, 60, 120)),
        ("continue", "1min", (120, 180, None)),
        ("*:0/4", "overwrite", (60, 120, 240)),
        ("2021-02-29", "overwrite", (60, 120, None)),
    ],
)
def test_expire_time(allocation: str, retention: str, expected: tuple[int | None, ...]) -> None:
    inventory, media = three_sets()
    assert tuple(rules.expire_time(inventory, each, pool(allocation, retention)) for each in media) == expected


def test_start_of_a_set_without_its_first_medium() -> None:
    second = in_set(medium("B"), "pp", "one", 1, 50)
    assert rules.expire_time(inventory_of(second), second, pool("always", "10s")) == 60
    free = medium("C", pool="pp")
    assert rules.expire_time(inventory_of(free), free, pool("always", "10s")) is None


# -- status ------------------------------------------------------------------------------------------------------------


def test_status() -> None:
    inventory, (first, _, third) = three_sets()
    fourth = in_set(medium("T3"), "pp", "set 2", 1, 130)
    inventory.put(fourth)
    p = pool()
    assert rules.status(inventory, first, p) == "full"  # not the current set
    assert rules.status(inventory, third, p) == "full"  # not its last medium
    assert rules.status(inventory, fourth, p) == "writable"
    for stored in ("full", "damaged", "retired"):
        assert rules.status(inventory, replace(fourth, status=stored), p) == stored
    assert rules.status(inventory, medium("X", pool="pp"), p) == "writable"
    reserved = replace(medium("Y"), set_label=MediaSetLabel("pp", NO_SET, 0, 5))
    assert reserved.pool == "pp" and rules.status(inventory, reserved, p) == "writable"
    assert rules.status(inventory, in_set(medium("Z"), "q", "other", 0, 1), p) == "unknown"
    assert rules.status(inventory, first, None) == "unknown"  # its pool is not configured
    pools = {"pp": pool("always", "12s")}
    assert rules.shown_status(inventory, first, pools, 11) == "full"
    assert rules.shown_status(inventory, first, pools, 12) == "expired"
    assert rules.shown_status(inventory, replace(first, status="damaged"), pools, 12) == "damaged"


def test_no_set_is_the_latest_of_two() -> None:
    one, two = in_set(medium("A"), "pp", "one", 0, 10), in_set(medium("B"), "pp", "two", 0, 10)
    inventory = inventory_of(one, two)
    assert inventory.latest_set("pp") is None
    assert rules.status(inventory, one, pool()) == "full"
    assert choose_set(inventory, pool(), 20, force_new=False).is_new


# -- which set is written ----------------------------------------------------------------------------------------------


def start(inventory: Inventory, p: Pool, now: int = 1000, *, force: bool = False) -> str | None:
    return choose_set(inventory, p, now, force_new=force).reason


def test_the_set_goes_on() -> None:
    a, b = in_set(medium("A"), "pp", "one", 0, 10, None), in_set(medium("B"), "pp", "one", 1, 20)
    both = inventory_of(a, b)
    assert choose_set(both, pool(), 1000, force_new=False).media_set == uuid_of("one")
    assert start(both, pool(), force=True) is not None
    assert start(both, pool("always")) is not None
    assert start(inventory_of(), pool()) is not None
    # an event after the start of the set
    assert start(both, pool("*:0/1"), 59) is None and start(both, pool("*:0/1"), 60) is not None
    # what makes it unusable
    assert "not known" in (start(inventory_of(b), pool()) or "")
    assert "key" in (start(both, pool(encrypt=":".join(["aa"] * 32))) or "")
    for status in ("damaged", "retired"):
        assert status in (start(inventory_of(replace(a, status=status), b), pool()) or "")
    doubled = in_set(medium("C"), "pp", "one", 1, 30)
    assert "two media" in (start(inventory_of(a, b, doubled), pool()) or "")
    vault = Location.vault("attic")
    assert "vault" in (start(inventory_of(a, replace(b, location=vault)), pool()) or "")
    # what does not: a full one in a vault, a last one that is full, or not at hand
    assert start(inventory_of(replace(a, location=vault), b), pool()) is None
    assert start(inventory_of(a, replace(b, status="full")), pool()) is None
    assert start(inventory_of(a, replace(b, status="full", location=vault)), pool()) is None
    assert start(inventory_of(a, online(b, "lib")), pool()) is None


# -- which medium ------------------------------------------------------------------------------------------------------


def names(inventory: Inventory, p: Pool, changer: str | None = None, now: int = 1000) -> list[str]:
    return [each.name for each in candidates(inventory, p, uuid_of("now"), changer, now)]


def test_order_of_allocation() -> None:
    old = in_set(medium("OLD"), "pp", "old", 0, 5)
    older = in_set(medium("OLDER"), "pp", "older", 0, 3)
    last = in_set(medium("LAST"), "pp", "now", 0, 900)
    media = [
        medium("FREE2", 7), medium("FREE1", 7), medium("FREE0", 8), medium("OWN2", 1, "pp"), medium("OWN1", 1, "pp"),
        old, older, last, medium("OTHER", 0, "q"), replace(medium("BROKEN"), status="damaged"),
    ]  # fmt: skip
    p = pool("always", "12s")
    assert names(inventory_of(*media), p) == [
        "LAST", "OWN1", "OWN2", "OLDER", "OLD", "FREE1", "FREE2", "FREE0"
    ]  # fmt: skip
    assert names(inventory_of(*media), pool()) == ["LAST", "OWN1", "OWN2", "FREE1", "FREE2", "FREE0"]  # kept for ever
    assert names(inventory_of(*media), p, now=10) == ["LAST", "OWN1", "OWN2", "FREE1", "FREE2", "FREE0"]
    full = [replace(last, status="full") if each is last else each for each in media]
    assert names(inventory_of(*full), p)[0] == "OWN1"
    # with a changer only what is in it, by hand only what is on the shelf
    in_library = [online(each, "lib") if each.name in ("OLD", "FREE0") else each for each in media]
    assert names(inventory_of(*in_library), p, "lib") == ["OLD", "FREE0"]
    assert "OLD" not in names(inventory_of(*in_library), p)
    vault = [replace(each, location=Location.vault("attic")) for each in media]
    assert names(inventory_of(*vault), p) == []


def test_session(tmp_path: Path) -> None:
    place, clock = new_place(tmp_path), StoppedClock(5000)
    store(place, medium("A1", 1), medium("B1", 2), medium("C1", 3, "qq"))
    with WriteSession(place, pool(), None, clock=clock) as session:
        assert session.start.is_new and session.members().members == {}
        first = session.allocate()
        assert first.is_new and first.medium.name == "A1"
        label = first.medium.in_set
        assert label is not None and (label.pool, label.seq_nr, label.time) == ("pp", 0, 5000)
        assert InventoryFile(place).load().get(first.medium.uuid) == first.medium
        log = CatalogLogs(place).load(first.medium.uuid)
        assert log is not None and (log.media_set, log.seq_nr) == (session.media_set, 0)
        again = session.allocate()
        assert not again.is_new and again.medium == first.medium
        session.set_bytes_used(first.medium.uuid, 77)
        session.set_full(first.medium.uuid)
        second = session.allocate()
        assert second.is_new and second.medium.name == "B1" and second.medium.in_set is not None
        assert second.medium.in_set.seq_nr == 1
        session.set_full(second.medium.uuid)
        with pytest.raises(NoMediaLeft):
            session.allocate()
        with pytest.raises(Locked):
            place.lock_pool("pp", wait_seconds=0)
    entry = InventoryFile(place).load().get(first.medium.uuid)
    assert (entry.bytes_used, entry.status) == (77, "full")
    with WriteSession(place, pool(), None, clock=clock) as session:
        assert not session.start.is_new and len(session.members().members) == 2


def test_a_medium_that_is_read_is_not_used_again(tmp_path: Path) -> None:
    place, clock = new_place(tmp_path), StoppedClock(5000)
    old = in_set(medium("OLD"), "pp", "old", 0, 5)
    store(place, old, medium("FREE"))
    CatalogLogs(place).create(old.uuid, uuid_of("old"), 0)
    with (
        place.lock_media_set(encode_uuid(uuid_of("old"))),  # a restore
        WriteSession(place, pool("always", "overwrite"), None, clock=clock) as session,
    ):
        assert session.allocate().medium.name == "FREE"
        session.set_full(session.allocate().medium.uuid)
    with WriteSession(place, pool("always", "overwrite"), None, clock=clock) as session:
        used = session.allocate()
        assert used.medium.name == "OLD" and used.medium.status is None
        log = CatalogLogs(place).load(old.uuid)
        assert log is not None and log.media_set == session.media_set
