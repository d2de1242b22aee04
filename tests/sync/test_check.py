"""sync --check tells every way in which a copy can lack something that can be told without reading contents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from archiver.store.store import Store
from tests.stores import chunk_files
from tests.sync.pair import Pair

pytestmark = pytest.mark.in_memory


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair.make(tmp_path, snapshots=3)
    assert made.sync().errors == []
    assert made.lacking() == {}
    return made


@pytest.mark.parametrize("with_database", [True, False])
def test_missing_chunk(pair: Pair, with_database: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every snapshot that needs it is named, also when the database still thinks that it is there."""
    if not with_database:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "file/below"))
    for file in chunk_files(pair.target):
        whole = file.read_bytes()
        file.unlink()
        needs = set()
        for ref in pair.saved:
            for index in (pair.source / ref.path).glob("*.didx"):
                if bytes.fromhex(file.name) in index.read_bytes():
                    needs.add(str(ref))
        found = pair.lacking()
        assert set(found) == needs and all("missing" in reason for reason in found.values())
        file.write_bytes(whole)
    assert pair.lacking() == {}


def test_damage_that_is_known(pair: Pair) -> None:
    digest = bytes.fromhex(chunk_files(pair.target)[0].name)
    with Store.open(pair.target) as store:
        assert store.database is not None
        store.database.mark_damaged(digest)
    assert pair.lacking()


@pytest.mark.parametrize("name", ["tree.ppxar.didx", "tree.mpxar.didx", "index.json.blob"])
def test_missing_file(pair: Pair, name: str) -> None:
    (pair.target / pair.saved[1].path / name).unlink()
    assert set(pair.lacking()) == {str(pair.saved[1])}


def test_missing_snapshot_and_damaged_manifest(pair: Pair) -> None:
    shutil.rmtree(pair.target / pair.saved[0].path)
    (pair.target / pair.saved[1].path / "index.json.blob").write_bytes(b"damaged")
    found = pair.lacking()
    assert found[str(pair.saved[0])] == "not there" and "damaged" in found[str(pair.saved[1])]
    assert len(found) == 2


def test_everything_missing(pair: Pair) -> None:
    shutil.rmtree(pair.target / ".chunks")
    (pair.target / ".chunks").mkdir()
    assert set(pair.lacking()) == {str(ref) for ref in pair.saved}
