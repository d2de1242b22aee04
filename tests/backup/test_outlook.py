"""What a person is told before a run that may not fit; it is never refused, and a night with room asks nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup import outlook
from archiver.backup.outlook import look_out
from archiver.backup.run import BackupOptions, backup
from archiver.backup.specification import ArchiveSpec
from archiver.cli.output import Output
from archiver.core.events import Event, SpaceShort
from archiver.errors import NotFound
from archiver.source.walk import Walk, WalkOptions
from archiver.store.store import Store
from formats.patterns import parse_exclude_option
from tests.random_trees import noise
from tests.stores import GROUP, Ahead, make_store, save

MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A store where 3 MiB are free, and a source of 5 MiB in use by its file system."""
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "one").write_bytes(noise(1, 2 * MIB))
    (tree / "below/two").write_bytes(noise(2, 2 * MIB))
    os.truncate(tree / "below/two", 100 * MIB)  # a hole takes nothing
    path = make_store(tmp_path / "store")
    have(monkeypatch, free=3, held=5)
    return path, tree


def have(monkeypatch: pytest.MonkeyPatch, *, free: int, held: int) -> None:
    """In MiB."""
    monkeypatch.setattr(outlook, "available", lambda base: free * MIB)
    monkeypatch.setattr(outlook, "_held", lambda path: held * MIB)


def look(path: Path, tree: Path, **options: object) -> SpaceShort | None:
    with Store.open(path) as store:
        return look_out(store, GROUP, [ArchiveSpec("tree", str(tree))], WalkOptions(**options))  # type: ignore[arg-type]


def test_a_first_run(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that it would save are added up, without their holes."""
    found = look(*place)
    assert found is not None and found.basis == "sources" and found.free == 3 * MIB
    assert 4 * MIB <= found.needed < 4 * MIB + (64 << 10)
    assert look(*place, excludes=[parse_exclude_option(b"one")]) is None
    have(monkeypatch, free=5, held=6)
    assert look(*place) is None


def test_nobody_walks_where_there_is_room(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(*arguments: object) -> Walk:
        raise AssertionError("it walks")

    monkeypatch.setattr(outlook, "Walk", walk)
    with pytest.raises(AssertionError):
        look(*place)
    have(monkeypatch, free=5, held=5)
    assert look(*place) is None
    with pytest.raises(AssertionError):
        look(*place, all_file_systems=True)  # who knows what is mounted there


def test_how_much_a_file_system_holds(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    assert 0 < outlook._held(str(tmp_path)) < space.f_blocks * space.f_frsize
    assert outlook._held("/proc") > 1 << 60, "one that does not tell"
    assert outlook._held("/nowhere") == 0


def test_later_runs(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one counts no more; of the later ones the one that stored most. No walk is made."""
    path, tree = place
    save(path, tree, time=1_700_000_000)
    assert look(path, tree) is None, "what the second one needs is not known"
    monkeypatch.setattr(outlook, "Walk", None)
    for number, size in enumerate((4 * MIB, 1000), 1):
        (tree / "one").write_bytes(noise(number + 5, size))
        save(path, tree, time=1_700_000_000 + number)
    found = look(path, tree)
    assert found is not None and found.basis == "runs" and 4 * MIB < found.needed < 5 * MIB
    have(monkeypatch, free=5, held=9)
    assert look(path, tree) is None


def test_what_is_not_there_is_the_same_error(place: tuple[Path, Path]) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        look(place[0], place[1] / "nowhere", all_file_systems=True)


def test_it_is_told_and_the_run_goes_on(place: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, tree = place
    told: list[Event] = []
    with Store.open(path, clock=Ahead()) as store:
        backup(store, [ArchiveSpec("tree", str(tree))], BackupOptions(GROUP), told.append)
    (short,) = [event for event in told if isinstance(event, SpaceShort)]
    assert short.basis == "sources"
    output = Output(as_json=False, quiet=False, verbose=False)
    output.hear(short)
    output.hear(SpaceShort(5 * MIB, MIB, "runs"))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("this may not fit: the sources hold 4") and "3 MiB are free" in first
    assert second == "this may not fit: the last runs stored up to 5 MiB, and 1 MiB are free"
