"""Restoring parts of a snapshot: patterns, single entries, versions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from archiver.errors import NotFound, UsageError
from archiver.store.layout import SnapshotRef
from tests.cli.command import ask, call
from tests.compare import differences
from tests.restore.over import over
from tests.stores import bring_back, make_store, save


@pytest.fixture
def place(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for path in ("etc/ssh/key", "etc/fstab", "home/me/a.txt", "home/me/a.tmp", "home/me/deep/er/b.txt", "var/log/x"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    (source / "home/me").chmod(0o750)
    os.link(source / "etc/fstab", source / "home/me/linked")
    os.link(source / "etc/fstab", source / "var/linked-too")
    (source / "home/empty").mkdir()
    make_store(tmp_path / "store")
    return tmp_path


@pytest.fixture(params=["data", "legacy"])
def ref(request: pytest.FixtureRequest, place: Path) -> SnapshotRef:
    return save(place / "store", place / "source", mode=request.param).snapshot


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


ALL = [
    *("etc", "etc/fstab", "etc/ssh", "etc/ssh/key", "home", "home/empty", "home/me", "home/me/a.tmp", "home/me/a.txt"),
    *("home/me/deep", "home/me/deep/er", "home/me/deep/er/b.txt", "home/me/linked", "var", "var/linked-too", "var/log"),
    "var/log/x",
]
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], list[str]]] = {
    "everything": ((), (), ALL),
    "a file": (("/etc/fstab",), (), ["etc", "etc/fstab"]),
    "a subtree": (("/home/me/deep",), (), ["home", "home/me", *ALL[9:12]]),
    "two paths, order of the archive": (("/var/log", "/etc/ssh"), (), ["etc", *ALL[2:4], "var", *ALL[15:17]]),
    "by name": (("*.txt",), (), ["home", "home/me", "home/me/a.txt", *ALL[9:12]]),
    "directories only": (("ssh/",), (), ["etc", "etc/ssh", "etc/ssh/key"]),
    "all but": ((), ("/home/me", "*.tmp"), [name for name in ALL if not name.startswith("home/me")]),
    "both": (("/home",), ("*.tmp", "er"), ["home", "home/empty", "home/me", "home/me/a.txt", *ALL[9:10], ALL[12]]),
    "excluded wins": (("/home/me/a.txt", "/etc"), ("/home",), ALL[:4]),
}


@pytest.mark.parametrize("case", CASES)
def test_patterns(place: Path, ref: SnapshotRef, case: str) -> None:
    include, exclude, wanted = CASES[case]
    result = over(place / "store", ref, place / "out", None, include=include, exclude=exclude)
    assert result.problems == [] and names(place / "out") == wanted
    for name in wanted:
        one, other = (place / "source" / name).stat(), (place / "out" / name).stat()
        assert (one.st_mode, one.st_mtime_ns, one.st_uid) == (other.st_mode, other.st_mtime_ns, other.st_uid)
        if (place / "out" / name).is_file():
            assert (place / "out" / name).read_bytes() == (place / "source" / name).read_bytes()


def test_links_to_what_is_not_chosen(place: Path, ref: SnapshotRef) -> None:
    """The first one becomes the file, the others link to it."""
    over(place / "store", ref, place / "out", None, exclude=("/etc",))
    linked, too = place / "out/home/me/linked", place / "out/var/linked-too"
    assert linked.read_text() == "etc/fstab" and os.path.samefile(linked, too)
    over(place / "store", ref, place / "one", None, include=("/var/linked-too",))
    assert (place / "one/var/linked-too").read_text() == "etc/fstab"


def test_nothing_fits(place: Path, ref: SnapshotRef) -> None:
    for include in (("/etc/no-such",), ("*.nothing",)):
        with pytest.raises(NotFound):
            over(place / "store", ref, place / "out", None, include=include)
    with pytest.raises(UsageError, match="--include"):
        over(place / "store", ref, place / "out", None, include=("[",))


def test_directories_above_stay_as_they_are(place: Path, ref: SnapshotRef) -> None:
    """A file brought back into a living tree changes nothing of the directories around it but their times."""
    target = place / "target"
    (target / "home/me").mkdir(parents=True)
    (target / "home/me").chmod(0o711)
    (target / "mine").write_text("mine")
    result = over(place / "store", ref, target, include=("/home/me/a.txt",), delete=True)
    assert result.problems == [] and result.removed == 0
    assert names(target) == ["home", "home/me", "home/me/a.txt", "mine"]
    assert (target / "home/me").stat().st_mode & 0o777 == 0o711


def test_extras_that_were_not_chosen_stay(place: Path, ref: SnapshotRef) -> None:
    target = place / "target"
    over(place / "store", ref, target, None)
    for name in ("home/me/extra.txt", "home/me/extra.tmp", "etc/extra.txt"):
        (target / name).write_text("extra")
    result = over(place / "store", ref, target, include=("/home",), exclude=("*.tmp",), delete=True)
    assert result.removed == 1
    assert names(Path(result.quarantine[0])) == ["home", "home/me", "home/me/extra.txt"]
    assert (target / "home/me/extra.tmp").exists() and (target / "etc/extra.txt").exists()


def test_one_directory_becomes_the_target(place: Path, ref: SnapshotRef) -> None:
    over(place / "store", ref, place / "out", None, path=b"/home/me")
    (place / "source/home/me/linked").unlink()
    (place / "source/home/me/linked").write_text("etc/fstab")
    os.utime(place / "source/home/me/linked", ns=(0, (place / "out/linked").stat().st_mtime_ns))
    os.utime(place / "source/home/me", ns=(0, (place / "out").stat().st_mtime_ns))
    assert differences(place / "source/home/me", place / "out") == []


def test_one_file_gets_the_name_of_the_target(place: Path, ref: SnapshotRef) -> None:
    (place / "out").mkdir()
    over(place / "store", ref, place / "out/old-fstab", None, path=b"etc/fstab")
    over(place / "store", ref, place / "out", None, path=b"/var/linked-too")
    assert names(place / "out") == ["linked-too", "old-fstab"]
    with pytest.raises(UsageError, match="exists already"):
        over(place / "store", ref, place / "out/old-fstab", None, path=b"etc/ssh/key")
    assert (place / "out/old-fstab").read_text() == "etc/fstab"
    over(place / "store", ref, place / "out/old-fstab", "always", path=b"etc/ssh/key")
    assert (place / "out/old-fstab").read_text() == "etc/ssh/key"
    with pytest.raises(NotFound):
        over(place / "store", ref, place / "out", None, path=b"/etc/../etc/fstab")


def test_versions_on_the_command_line(place: Path) -> None:
    """As history prints them: what the file was, next to what it is now."""
    store, source = place / "store", place / "source"
    times = ["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"]
    for text, when in zip(("one", "two", "three"), (1763596800, 1763683200, 1763769600), strict=True):
        (source / "etc/fstab").write_text(text)
        save(store, source, time=when)
    listed = [item["snapshot"].rpartition("/")[2] for item in ask("--store", store, "snapshots")["items"]]
    times = sorted(listed)
    now = source / "etc/fstab"
    done = call("--store", store, "restore", "host/test", f"/etc/fstab@{times[1]}", now.with_name("fstab.before"))
    assert done.code == 0, done.err
    assert (now.read_text(), now.with_name("fstab.before").read_text()) == ("three", "two")
    document = ask("--store", store, "restore", "host/test", f"/etc/fstab@{times[0]}", place / "very-old")
    assert document["snapshot"] == f"host/test/{times[0]}" and (place / "very-old").read_text() == "one"
    assert ask("--store", store, "restore", "host/test", "/etc/fstab", place / "new")["files"] == 1
    assert (place / "new").read_text() == "three"
    assert call("--store", store, "restore", "host/test", "/etc/fstab@2020-01-01T00:00:00Z", place / "x").code == 10
    assert call("--store", store, "restore", "host/test", "/no", place / "x").code == 10
    assert call("--store", store, "restore", "host/test", "/a", "/b", place / "x").code == 2
    assert call("--store", store, "restore", "host/test", "/etc", place / "x", "--include", "a").code == 2
    assert not (place / "x").exists()


def test_below_more_missing_directories_than_python_recurses_into(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    path = make_store(tmp_path / "store")
    ref = save(path, source).snapshot
    target = Path(tmp_path, *["d"] * 1300, "out")
    assert bring_back(path, ref, target).problems == []
    assert (target / "file").read_text() == "text"
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
