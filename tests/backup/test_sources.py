"""Where a backup stops: mount points, sources that are none, and what the user left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.backup.specification import parse_specification
from archiver.errors import UsageError
from archiver.source.walk import WalkOptions
from formats.patterns import parse_exclude_option
from tests.source.sandbox import mount, with_mounts
from tests.stores import bring_back, make_store, save


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_mount_points(tmp_path: Path, mode: Mode) -> None:
    """Not entered and listed; entered when asked for, but virtual file systems never."""

    def work() -> dict[str, tuple[list[str], list[bytes]]]:
        tree = tmp_path / "tree"
        for name in ("memory", "kernel", "other"):
            (tree / name).mkdir(parents=True)
        mount(b"tmpfs", tree / "memory", b"tmpfs")
        mount(b"tmpfs", tree / "other", b"tmpfs")
        mount(b"proc", tree / "kernel", b"proc")
        for name in ("memory", "other"):
            (tree / name / "file").write_bytes(b"x")
        options = {
            "default": WalkOptions(),
            "all": WalkOptions(all_file_systems=True),
            "one": WalkOptions(include_dev=frozenset({os.stat(tree / "other").st_dev})),
        }
        found = {}
        store = make_store(tmp_path / "store")
        for name, walk in options.items():
            saved = save(store, tree, mode=mode, walk=walk)
            assert saved.result.errors == []
            out = tmp_path / name
            bring_back(store, saved.snapshot, out)
            present = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
            found[name] = present, sorted(problem.path for problem in saved.problems if problem.kind == "mount")
        return found

    found = with_mounts(work)
    directories = ["kernel", "memory", "other"]
    assert found["default"] == (directories, [b"/kernel", b"/memory", b"/other"])
    assert found["all"] == (sorted([*directories, "memory/file", "other/file"]), [b"/kernel"])
    assert found["one"] == (sorted([*directories, "other/file"]), [b"/kernel", b"/memory"])


@pytest.mark.parametrize("path", ["/proc/self", "/proc", "/sys", "/proc/self/fdinfo", "/dev/fd"])
def test_sources_that_are_no_files(tmp_path: Path, path: str) -> None:
    if not os.path.isdir(path):
        pytest.skip(f"there is no {path}")
    store = make_store(tmp_path / "store")
    with pytest.raises(UsageError, match="file system"):
        save(store, Path(path))
    assert not (store / "host").exists(), "nothing was published"


def test_sources_that_are_no_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("file", "is not a directory"), ("dangling", "directory"), ("fifo", "is not a directory")):
        with pytest.raises(UsageError, match=reason):
            parse_specification(str(tmp_path / name))
        with pytest.raises(UsageError, match=reason):
            parse_specification(f"x.pxar:{tmp_path / name}")
    with pytest.raises(UsageError, match="does not exist"):
        parse_specification(str(tmp_path / "absent"))


def test_the_store_as_source(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    for path in (store, store / ".chunks"):
        with pytest.raises(UsageError, match="part of the store"):
            save(store, path, walk=WalkOptions())


def test_store_and_database_below_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is made by the very run that must not archive it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tree / "databases"))
    store = make_store(tree / "store")
    saved = save(store, tree, walk=WalkOptions())
    assert saved.result.errors == []
    assert len([problem for problem in saved.problems if problem.kind == "skipped"]) == 2
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_what_is_left_out(tmp_path: Path, mode: Mode) -> None:
    tree = tmp_path / "tree"
    for name in ("lost+found", "cache", "deep/cache", "kept"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file.o").write_bytes(b"x")
        (tree / name / "file.c").write_bytes(b"x")
    (tree / "deep/.pxarexclude").write_bytes(b"cache/*.c\n")
    (tree / "cache/CACHEDIR.TAG").write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    walk = WalkOptions(excludes=[parse_exclude_option(b"*.o")], skip_lost_and_found=True, exclude_caches=True)
    store = make_store(tmp_path / "store")
    bring_back(store, save(store, tree, mode=mode, walk=walk).snapshot, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    expected = {"cache", "cache/CACHEDIR.TAG", "deep", "deep/.pxarexclude", "deep/cache", "kept", "kept/file.c"}
    assert found == expected | ({".pxarexclude-cli"} if mode == "legacy" else set())


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_file_too_large_for_the_format(tmp_path: Path, mode: Mode) -> None:
    """Sparse files of some file systems can be larger than an archive: it is left out and named."""

    def work() -> list[tuple[bytes, str]]:
        tree = tmp_path / "tree"
        tree.mkdir()
        mount(b"tmpfs", tree, b"tmpfs")
        with open(tree / "huge", "wb") as file:
            file.truncate(2**63 - 1)
        (tree / "small").write_bytes(b"x")
        saved = save(make_store(tmp_path / "store"), tree, mode=mode)
        bring_back(tmp_path / "store", saved.snapshot, tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["small"]
        return [(problem.path, problem.reason) for problem in saved.result.errors]

    assert with_mounts(work) == [(b"/huge", "file too large")]
