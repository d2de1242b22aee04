"""The file catalog against a model: trees change at random, snapshots are forgotten, every answer is compared."""

from __future__ import annotations

import tempfile
import uuid
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from archiver.browse.history import History
from archiver.browse.recorded import RunTree
from archiver.core.events import Notice
from archiver.store.catalog.catalog import Catalog
from archiver.store.catalog.forget import clear, forget
from archiver.store.catalog.record import read_references, reference_places
from archiver.store.database import records
from archiver.store.database.database import Database, open_database
from formats.crypt import CryptConfig
from formats.patterns import Pattern, PatternList
from tests.catalogs import KEY, Disk, Nights, Seen, open_catalog, seen, walked

pytestmark = pytest.mark.in_memory

PATTERNS = [b"report*", b"/a/**", b"**/b/*", b"*.txt", b"a/b", b"[!a]", b"**", b"b/", b"\\[odd\\]", b"name-1?4*", b"?"]


def check(catalog: Catalog, model: dict[int, dict[bytes, Seen]]) -> None:
    """Everything that can be asked about the snapshots of the model."""
    for time, expected in model.items():
        assert walked(RunTree(catalog, time)) == expected
    if not model:
        return
    history = History(catalog, list(model))
    everything = sorted({path for expected in model.values() for path in expected})
    for path in everything[:60] + everything[-20:] + [b"not/there"]:
        states: dict[Seen, list[int]] = {}
        for time, expected in model.items():
            if path in expected:
                states.setdefault(expected[path], []).append(time)
        found = {version.times: version.entry for version in history.versions(b"/" + path)}
        assert set(found) == {tuple(times) for times in states.values()}
        for state, times in states.items():
            entry = found[tuple(times)]
            assert entry.metadata is not None and entry.name == path.rpartition(b"/")[2]
            mtime = entry.metadata.stat.mtime_secs
            assert (entry.kind, mtime) == (state[0], state[1] if state[0] == "dir" else state[3])
    for text in PATTERNS:
        pattern = Pattern.parse(text)
        matching = PatternList([pattern])
        folders = {path for expected in model.values() for path, state in expected.items() if state[0] == "dir"}
        wanted = {path for path in everything if matching.match(b"/" + path, path in folders) is not None}
        got = list(History(catalog, list(model)).glob(pattern))
        assert len(got) == len(set(got))
        assert wanted <= set(got)
        gone = set(got) - wanted  # of forgotten snapshots
        assert not any(history.versions(path) for path in gone)


def check_offsets(catalog: Catalog, disk: Disk) -> None:
    """The newest run knows where contents lie: in the order of the walk, one behind the other."""
    newest = catalog.newest()
    assert newest is not None
    tree = RunTree(catalog, newest.time)
    position = 16
    todo = [tree.root]
    while todo:
        key = todo.pop()
        record = tree.record(key)
        below = []
        for part in [key] if not record.is_split else [leaf for leaf, _ in record.leaves]:
            held, layout = tree.record(part), newest.layout(newest.find(part))
            sizes = read_references(held.items, reference_places(held.lengths.astype("i8"), held.kinds))[:, 1]
            for offset, size in zip(layout.offsets(sizes).tolist(), sizes.tolist(), strict=True):
                assert offset == position
                position += size + 16
            below += [item.key for item in tree.entries(key) if item.kind == "dir"] if part == key else []
        if record.is_split:
            below = [item.key for item in tree.entries(key) if item.kind == "dir"]
        todo.extend(reversed(below))


def in_use(database: Database) -> dict[bytes, int]:
    """Records in each table of the catalog."""
    tables = (records.RUN, records.PACK, records.PLACE, records.NAMES, records.NEWEST)
    return {table: len(database.keys(table, b"")) for table in tables}


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "sealed"])
@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32), nights=st.integers(1, 14), steps=st.integers(0, 25))
def test_random_trees_are_recorded_asked_for_and_forgotten(
    crypt: CryptConfig | None, seed: int, nights: int, steps: int
) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        database = open_database(directory, str(uuid.UUID(int=1)), fail_on_warnings)
        assert database is not None

        def fresh(key: CryptConfig | None = crypt) -> Catalog:
            return open_catalog(database, key, random)

        disk = Disk()
        model: dict[int, dict[bytes, Seen]] = {}
        writer = Nights(fresh())
        for night in range(1, nights + 1):
            for _ in range(steps):
                disk.step(random)
            writer.catalog = fresh()
            if writer.catalog.newest() is None:
                writer.paths = {}
            writer.record(disk, night * 10, random)
            model[night * 10] = seen(disk.root)
            check_offsets(fresh(), disk)
            if random.random() < 0.3:
                lost = random.sample(sorted(model), random.randrange(len(model) + 1))
                for time in lost:
                    del model[time]
                if random.random() < 0.5:
                    forget(fresh(None), list(model))  # as without the key
                    clear(fresh())
                else:
                    forget(fresh(), list(model))
        check(fresh(), model)
        forget(fresh(), [])
        assert set(in_use(database).values()) == {0}
        database.close()


def fail_on_warnings(event: object) -> None:
    assert not isinstance(event, Notice), event
