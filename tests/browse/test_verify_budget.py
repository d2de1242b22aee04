"""Budgets: which chunks a run reads, and that all of them have their turn."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from archiver.browse import chunk_check
from archiver.browse.verify import Budget, VerifyOptions, VerifyResult, verify
from archiver.core.events import ignore
from archiver.errors import UsageError
from archiver.store.chunks import ChunkReader
from archiver.store.database.rounds import load_round
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, Heard, SetClock, chunk_files, every_snapshot, save

pytestmark = pytest.mark.in_memory

NOW = 1_700_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", name="test")
    build_plain(tmp_path / "source", 1, files=60, max_size=60_000)
    save(tmp_path / "store", tmp_path / "source", crypt=KEY, clock=SetClock(NOW))
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chunks that are read, in order."""
    found: list[str] = []
    stored = ChunkReader.stored

    def noted(self: ChunkReader, digest: bytes) -> memoryview:
        found.append(digest.hex())
        return stored(self, digest)

    monkeypatch.setattr(ChunkReader, "stored", noted)
    return found


def run(path: Path, budget: Budget, *, now: int = NOW + 10, with_key: bool = True, scope: str = "") -> VerifyResult:
    options = VerifyOptions(write_state=True, budget=budget, scope=scope)
    with Store.open(path, clock=SetClock(now)) as store:
        return verify(store, every_snapshot(store), KEY if with_key else None, ignore, options)


def average(path: Path) -> int:
    sizes = [chunk.stat().st_size for chunk in chunk_files(path)]
    return sum(sizes) // len(sizes)


@pytest.mark.parametrize("with_key", [True, False])
def test_every_chunk_before_any_again(place: Path, reads: list[str], with_key: bool) -> None:
    path = place / "store"
    everything = {chunk.name for chunk in chunk_files(path)}
    some = Budget(bytes=3 * average(path))
    before: set[str] = set()
    runs = 0
    while before != everything:
        runs += 1
        reads.clear()
        result = run(path, some, with_key=with_key).budget
        assert result is not None and 1 <= result.reached == len(reads) < len(everything)
        assert result.reached_bytes <= some.bytes or result.reached == 1  # type: ignore[operator]
        assert before.isdisjoint(reads) or not result.left  # the last one may begin anew
        before |= set(reads)
        assert result.left == len(everything) - len(before)
        assert result.not_reached == len(everything) - result.reached
    assert runs > 3
    reads.clear()
    run(path, some, with_key=with_key)
    assert reads  # and on it goes


def test_new_chunks_never_hold_up_the_old_ones(place: Path, reads: list[str]) -> None:
    """However many come, with more bytes than the budget has, those that nobody has ever verified too."""
    path, source = place / "store", place / "source"
    old = {chunk.name for chunk in chunk_files(path)}
    some = Budget(bytes=3 * average(path))
    waiting, runs = set(old), 0
    with Store.open(path) as store:
        first_size = sum(chunk.stat().st_size for chunk in chunk_files(path))
    while waiting:
        runs += 1
        for number in range(6):
            (source / f"new-{runs}-{number}").write_bytes(random.Random(f"{runs} {number}").randbytes(60_000))
        save(path, source, crypt=KEY, clock=SetClock(NOW - 10**6 + runs))  # its clock is wrong: they look old
        if runs % 3 == 0:
            with Store.open(path) as store:
                database = store.database
                assert database is not None
                fresh = [bytes.fromhex(chunk.name) for chunk in chunk_files(path) if chunk.name not in old]
                rows = database.find_chunks(fresh)
                database.put_chunks(row[1]._replace(verified=0) for row in rows if row is not None)
        reads.clear()
        run(path, some)
        waiting -= set(reads)
        assert runs < 40
    assert runs <= 2 * (first_size // (2 * average(path)) + 1)


def test_longest_ago_first(place: Path, reads: list[str]) -> None:
    path = place / "store"
    names = [chunk.name for chunk in chunk_files(path)]
    order = random.Random(1).sample(names, len(names))
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        for when, name in enumerate(order):
            found = database.find_chunks([bytes.fromhex(name)])[0]
            assert found is not None
            database.put_chunks([found[1]._replace(verified=when)])  # 0: never
    result = run(path, Budget(bytes=4 * average(path))).budget
    assert result is not None
    assert set(reads) == set(order[: len(reads)]) and 1 < len(reads) < len(names)
    assert result.oldest == len(reads)


def test_known_damage_comes_always_and_costs_nothing(place: Path) -> None:
    path = place / "store"
    bad = chunk_files(path)[3:6]
    for chunk in bad:
        data = bytearray(chunk.read_bytes())
        data[-1] ^= 1
        chunk.write_bytes(data)
    assert run(path, Budget(bytes=1 << 30)).error_count == 3
    for _ in range(2):
        result = run(path, Budget(bytes=1))
        assert {error.chunk for error in result.errors} == {chunk.name for chunk in bad}
        assert result.chunks == 4


def test_states_at_the_end_of_a_cycle(place: Path) -> None:
    """Damaged snapshots at once; good ones when every chunk was read since it began, whatever run did so."""
    path, source = place / "store", place / "source"
    mutate(source, 1, 3)
    save(path, source, crypt=KEY, clock=SetClock(NOW + 1))
    some = Budget(bytes=5 * average(path))

    def states() -> list[object]:
        with Store.open(path) as store:
            return [store.info(ref).verify_state for ref in every_snapshot(store)]

    now = NOW + 10
    result = run(path, some, now=now)
    assert states() == [None, None] and result.budget is not None and result.budget.left
    while result.budget is not None and result.budget.left:
        now += 10
        result = run(path, some, now=now)
    assert now > NOW + 20
    assert states() == [{"state": "ok", "time": NOW + 10}] * 2
    for chunk in chunk_files(path):
        chunk.write_bytes(b"")
    run(path, Budget(bytes=1), now=now + 10)
    assert {"state": "failed", "time": now + 10} in states()


def test_a_cycle_without_the_key_proves_no_encrypted_chunk(place: Path) -> None:
    """It ends all the same; and what one run of it checked by CRC alone is not good when the next one has the key."""
    path = place / "store"
    with Store.open(path) as store:
        store.rebuild_database()
    half = Budget(bytes=average(path) * len(chunk_files(path)) // 2)

    def state(budget: Budget, now: int, *, with_key: bool) -> tuple[int, object]:
        result = run(path, budget, now=now, with_key=with_key)
        assert result.budget is not None
        with Store.open(path) as store:
            (ref,) = every_snapshot(store)
            assert result.unproven == ([] if store.info(ref).verify_state else [str(ref)])
            return result.budget.left, store.info(ref).verify_state

    assert state(half, NOW + 10, with_key=False)[0]
    assert state(Budget(seconds=3600), NOW + 20, with_key=False) == (0, None)
    assert state(half, NOW + 30, with_key=False)[0]
    left, found = state(half, NOW + 40, with_key=True)
    while left:
        left, found = state(half, NOW + 40, with_key=True)
    assert found is None
    assert state(Budget(seconds=3600), NOW + 50, with_key=True) == (0, {"state": "ok", "time": NOW + 50})


def test_whole_store_within_a_budget(place: Path) -> None:
    result = run(place / "store", Budget(seconds=3600))
    assert result.budget is not None and (result.budget.not_reached, result.budget.left) == (0, 0)
    assert result.chunks == len(chunk_files(place / "store"))


def test_time(place: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    """It ends soon after; at least one part is read."""
    path, steps = place / "store", itertools.count()
    monkeypatch.setattr(SetClock, "steady", lambda self: float(next(steps)))
    count = len(chunk_files(path))
    left = []
    for _ in range(-(-count // 8)):
        result = run(path, Budget(seconds=0.001)).budget
        assert result is not None
        left.append(result.left)
    assert left == [*range(count - 8, 0, -8), 0]
    assert set(reads) == {chunk.name for chunk in chunk_files(path)}


def test_interrupted_run_counts(place: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    path, read = place / "store", ChunkReader.verify

    def stopping(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
        if len(reads) >= 12:
            raise KeyboardInterrupt
        return read(self, digest, size, encrypted=encrypted)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chunk_check, "_WORKERS", 1)
        patch.setattr(ChunkReader, "verify", stopping)
        run(path, Budget(seconds=100))
    with Store.open(path) as store:
        assert store.database is not None
        current = load_round(store.database, "")
        assert current is not None
        assert int(current.looked_at.sum()) == 8  # what is handed out together counts together
        assert len(current.looked_at) == len(chunk_files(path))
    reads.clear()
    result = run(path, Budget(seconds=100))
    assert result.budget is not None and result.budget.left == 0


def test_scopes_have_cycles_of_their_own(place: Path) -> None:
    path = place / "store"
    first = run(path, Budget(bytes=1), scope="a").budget
    second = run(path, Budget(bytes=1), scope="b").budget
    assert first is not None and second is not None
    assert first.left == second.left == len(chunk_files(path)) - 1


def test_without_a_database(place: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(Store, "database", None)
    path, heard, seen = place / "store", Heard(), set[str]()
    for _ in range(40):
        with Store.open(path, listener=heard) as store:
            result = verify(
                store, every_snapshot(store), KEY, heard, VerifyOptions(budget=Budget(bytes=2 * average(path)))
            )
        assert result.budget is not None and result.budget.began is None and result.budget.not_reached
        seen |= set(reads)
    assert len(seen) > len(chunk_files(path)) // 2
    assert any("random" in notice for notice in heard.notices)


def test_round_that_is_damaged(place: Path) -> None:
    from archiver.store.database import records, rounds

    path = place / "store"
    run(path, Budget(bytes=1))
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        database.change(lambda txn: txn.put(rounds._key(""), b"\1" * 9, db=database.table(records.META)))
    assert run(path, Budget(bytes=1)).error_count == 0  # this one goes on without a database
    result = run(path, Budget(seconds=100))
    assert result.error_count == 0 and result.chunks == len(chunk_files(path))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget(seconds=90)),
        ("10m", Budget(seconds=600)),
        ("1.5h", Budget(seconds=5400)),
        ("1d", Budget(seconds=86400)),
        ("20GiB", Budget(bytes=20 << 30)),
        ("500MB", Budget(bytes=500 << 20)),
        ("10MiB", Budget(bytes=10 << 20)),
        ("1.5G", Budget(bytes=3 << 29)),
        ("1 B", Budget(bytes=1)),
    ],
)
def test_words_for_budgets(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-1m", "0s", "0GiB", "10M", "1.5 M", "1e3s", "10m5s", "99999999999d", "0.1B"]
)
def test_words_for_no_budget(text: str) -> None:
    """10 and 10M would be sizes, but may be meant for times."""
    with pytest.raises(UsageError, match=r"is no (budget|size)"):
        Budget.parse(text)
