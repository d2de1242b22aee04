"""Damage in one archive of a snapshot is no reason to lose the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.errors import Damaged
from archiver.store.store import Store
from tests.cli.command import call
from tests.compare import differences
from tests.stores import bring_back, make_store, save

pytestmark = pytest.mark.in_memory

NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    sources = {name: tmp_path / "source" / name for name in NAMES}
    for name, place in sources.items():
        place.mkdir(parents=True)
        (place / name).write_text(name)
    save(make_store(tmp_path / "store"), sources)
    return tmp_path


def lose_names(store: Path, archive: str) -> None:
    """Remove the chunk with the names and attributes of an archive."""
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        digest = snapshot.index(snapshot.archive(archive).files[0]).digest(0)
        Path(opened.layout.chunk(digest.hex())).unlink()


def lose_index(store: Path, archive: str) -> None:
    next((store / "host/test").glob(f"*/{archive}.mpxar.didx")).unlink()


def test_other_archives_are_restored(saved: Path) -> None:
    lose_names(saved / "store", "first")
    lose_index(saved / "store", "third")
    with Store.open(saved / "store") as store:
        ref = store.find("latest")
    with pytest.raises(Damaged, match=r"first\.pxar of .* is damaged.*third\.mpxar\.didx of .* is missing") as raised:
        bring_back(saved / "store", ref, saved / "out")
    assert "second" not in str(raised.value) and "fourth" not in str(raised.value)
    for name in ("second", "fourth"):
        assert differences(saved / "source" / name, saved / "out" / f"{name}.pxar") == []


def test_exit_code(saved: Path) -> None:
    lose_names(saved / "store", "second")
    done = call("--store", saved / "store", "restore", "latest", saved / "out", "--json")
    assert done.code == 20 and done.error["code"] == "damaged"
    assert "second.pxar" in done.error["message"] and done.error["hint"]
    assert sorted(path.name for path in (saved / "out").glob("*/*")) == ["first", "fourth", "third"]
