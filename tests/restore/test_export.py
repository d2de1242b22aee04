"""What goes out as tar, zip or pxar is read by others: GNU tar, bsdtar, unzip, zstd, and Python's own modules."""

from __future__ import annotations

import gc
import io
import os
import random
import shutil
import socket
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.core import spill
from archiver.core.events import Event, FileProblem, ignore
from archiver.core.spill import SpillTable
from archiver.errors import Damaged, UsageError
from archiver.restore.export.members import Member, NotHeld
from archiver.restore.export.run import Format, export
from archiver.restore.export.zip import ZipWriter
from archiver.restore.run import RestoreOptions, RestoreResult
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.pxar.items import Entry
from formats.pxar.metadata import NO_ACL, Metadata, Stat
from tests.attributes import remove_tree, unlock_tree, write_sparse
from tests.cli.command import call
from tests.compare import NOT_KEPT, differences
from tests.hostile.build import corpus
from tests.mounts import small_file_system
from tests.restore.planted import plant
from tests.source.sandbox import IS_ROOT
from tests.stores import KEY, chunk_files, command, make_store, save
from tests.trees import build_features

GOLDEN = Path(__file__).parent.parent / "golden/pxar"
MIB = 1 << 20
NO_PLACE = NOT_KEPT | {"flags", "nodump", "project"}  # in a tar file


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    unlock_tree(tmp_path)
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("features") / "tree"
    build_features(root, as_root=IS_ROOT)
    write_sparse(root / "sparse/large", 64 * MIB, {32 * MIB + 5: b"middle", 64 * MIB - 3: b"end"})
    yield root
    remove_tree(root)


Stored = tuple[Path, SnapshotRef, CryptConfig | None]


@pytest.fixture(scope="module")
def stored(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    path = make_store(tmp_path_factory.mktemp("stored") / "store")
    return path, save(path, features, crypt=KEY).snapshot, KEY


def put(stored: Stored, target: Path | str, form: Format, *, verify: bool = True) -> RestoreResult:
    path, ref, crypt = stored
    with Store.open(path, read_only=True) as store:
        snapshot = Snapshot(store, ref, crypt)
        return export(snapshot, snapshot.restorable(), str(target), form, verify=verify, listener=ignore)


def unpacked(place: Path, *words: str) -> Path:
    out = place / "out"
    out.mkdir()
    done = subprocess.run(
        words, cwd=out, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 0, done.stderr
    return out


def only_sockets(unequal: list[str]) -> bool:
    return unequal == ["'specials/socket': only in the first tree"]


@pytest.mark.parametrize("form", ["tar", "tar.zst"])
def test_gnu_tar(features: Path, stored: Stored, place: Path, form: Format) -> None:
    """Everything but sockets and chattr flags comes back, names of any bytes and holes too."""
    file = place / f"x.{form}"
    result = put(stored, file, form)
    assert result.verified and result.kinds.keys() <= {"attribute", "not-restored"}
    assert [problem.path for problem in result.problems if problem.kind == "not-restored"] == [b"/specials/socket"]
    if form == "tar.zst":
        subprocess.run(["zstd", "-q", "-d", file, "-o", place / "x.tar"], check=True)
    options = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
    out = unpacked(place, "tar", "-xpf", str(place / "x.tar"), *options)
    assert only_sockets(differences(features, out, ignore=NO_PLACE))
    assert (out / "sparse/large").stat().st_blocks * 512 < 8 * MIB
    assert file.stat().st_size < 80 * MIB


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed (libarchive-tools)")
def test_bsdtar(features: Path, stored: Stored, place: Path) -> None:
    """Its own limits: ids beyond 2^31 in an ACL, composed names, times of ``.`` and before 1970, ``=`` in names."""
    put(stored, place / "x.tar", "tar", verify=False)
    out = unpacked(place, "bsdtar", "-xpf", str(place / "x.tar"), "--xattrs", "--acls", "--numeric-owner")
    unequal = differences(features, out, ignore=NO_PLACE)
    acls = [line for line in unequal if line.startswith("'acls/") and "system.posix_acl_" in line]
    limits = ("decomposed", "'.': mtime", ": mtime: -", "xattr:user.a=b", "xattr:user.a%3Db")
    others = [line for line in unequal if not any(limit in line for limit in limits)]
    assert only_sockets([line for line in others if line not in acls])
    assert all("users-and-groups" in line for line in acls)


def test_python_reads_the_tar(features: Path, stored: Stored, place: Path) -> None:
    put(stored, place / "x.tar", "tar")
    with tarfile.open(place / "x.tar", errors="surrogateescape") as tar:
        found = {os.fsencode(member.name): member for member in tar}
        for name, member in found.items():
            status = (features / os.fsdecode(name)).lstat()
            if not member.islnk():
                assert (member.uid, member.gid, member.mode) == (status.st_uid, status.st_gid, status.st_mode & 0o7777)
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None and file.read() == (features / os.fsdecode(name)).read_bytes()
    assert len(found) > 2000


def test_zip(features: Path, stored: Stored, place: Path) -> None:
    result = put(stored, place / "x.zip", "zip")
    left_out = {problem.path for problem in result.problems if problem.kind == "not-restored"}
    names = set()
    with zipfile.ZipFile(place / "x.zip") as found:
        assert found.testzip() is None
        for info in found.infolist():
            path = features / info.filename.rstrip("/")
            mode = info.external_attr >> 16
            if "\\x" in info.filename:
                continue
            names.add(os.fsencode(path.relative_to(features)))
            status = path.lstat()
            assert mode == status.st_mode
            if stat.S_ISREG(mode):
                assert found.read(info) == path.read_bytes()
            elif stat.S_ISLNK(mode):
                assert found.read(info) == os.fsencode(os.readlink(path))
    there = {
        os.path.relpath(os.path.join(top, name), bytes(features))
        for top, directories, files in os.walk(bytes(features))
        for name in directories + files
    }
    assert {b"/" + name for name in there - names} == left_out | {
        problem.path for problem in result.problems if "names there are UTF-8" in problem.reason
    }
    assert any(b"socket" in name for name in left_out) and len(names) > 2000


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip(place: Path) -> None:
    source = place / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/äö").write_text("text")
    (source / "d/äö").chmod(0o640)
    os.utime(source / "d/äö", (1_700_000_001, 1_700_000_001))
    (source / "link").symlink_to("d/äö")
    os.link(source / "d/äö", source / "other")
    path = make_store(place / "store")
    put((path, save(path, source).snapshot, None), place / "x.zip", "zip")
    out = unpacked(place, "unzip", "-q", str(place / "x.zip"))
    assert (out / "other").read_text() == "text"
    (out / "other").unlink()
    os.link(out / "d/äö", out / "other")
    assert differences(source, out, ignore=NOT_KEPT | {"mtime"}) == []
    assert (out / "d/äö").stat().st_mtime == 1_700_000_001


@pytest.mark.parametrize("name", ["plain", "features", "synth", "empty-root"])
def test_pxar_of_the_reference_implementation(tmp_path: Path, name: str) -> None:
    """A split archive goes out as the reference implementation writes the same tree as one stream."""
    path = make_store(tmp_path / "store")
    with Store.open(path) as store:
        ref = plant(store, 1, (GOLDEN / f"{name}.mpxar").read_bytes(), (GOLDEN / f"{name}.ppxar").read_bytes())
    result = put((path, ref, None), tmp_path / "x.pxar", "pxar")
    assert result.problems == []
    assert (tmp_path / "x.pxar").read_bytes() == (GOLDEN / f"{name}.pxar").read_bytes()


def test_pxar_of_a_pxar(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store")
    data = (GOLDEN / "features.pxar").read_bytes()
    with Store.open(path) as store:
        ref = plant(store, 1, data, None)
    put((path, ref, None), tmp_path / "x.pxar", "pxar")
    assert (tmp_path / "x.pxar").read_bytes() == data


def test_several_archives(tmp_path: Path) -> None:
    sources = {name: tmp_path / name for name in ("one", "two")}
    for name, source in sources.items():
        source.mkdir()
        (source / "file").write_text(name)
        os.link(source / "file", source / "link")
    path = make_store(tmp_path / "store")
    stored = path, save(path, sources).snapshot, None
    with pytest.raises(UsageError, match="one archive"):
        put(stored, tmp_path / "x.pxar", "pxar")
    put(stored, tmp_path / "x.tar", "tar")
    out = unpacked(tmp_path, "tar", "-xpf", str(tmp_path / "x.tar"))
    for name, source in sources.items():
        assert differences(source, out / f"{name}.pxar") == []


def test_stdout_and_targets(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    path = make_store(tmp_path / "store")
    save(path, source)
    with (tmp_path / "x.tar").open("wb") as out:
        words = command("--store", path, "restore", "latest", "-", "--format", "tar")
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == [".", "./file"]
    for words in (["x.tar"], ["x.tar", "--json"]):
        taken = call("--store", path, "restore", "latest", tmp_path / words[0], *words[1:], "--format", "tar")
        assert taken.code == 2
    mixed = call("--store", path, "restore", "latest", "-", "--format", "zip", "--json")
    assert mixed.code == 2 and "stdout" in mixed.error["message"]
    made = call("--store", path, "restore", "latest", tmp_path / "new/dir/x.zip", "--format", "zip", "--json")
    assert made.code == 0 and made.document["verified"] and made.document["files"] == 1


def damaged_chunk(path: Path, at_least: int) -> None:
    """One byte of a chunk of that size is another."""
    bad = max(chunk_files(path), key=lambda file: file.stat().st_size)
    assert bad.stat().st_size >= at_least
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)


@pytest.mark.parametrize("form", ["tar", "zip", "pxar"])
def test_damage(tmp_path: Path, form: Format) -> None:
    """A damaged small file is left out, under all of its names; a damaged large one ends it all, and nothing is left
    behind."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad").write_bytes(random.Random(1).randbytes(200_000))  # its largest chunk is not shared with others
    os.link(source / "bad", source / "name")
    (source / "good").write_text("text")
    path = make_store(tmp_path / "store")
    stored = path, save(path, source).snapshot, None
    damaged_chunk(path, 16_000)
    result = put(stored, tmp_path / "small/file", form)
    other_name = b"/name", "damaged" if form == "zip" else "not-restored"
    assert [(problem.path, problem.kind) for problem in result.problems] == [(b"/bad", "damaged"), other_name]
    assert result.files == 1
    if form == "tar":
        assert os.listdir(unpacked(tmp_path / "small", "tar", "-xf", "../file")) == ["good"]
    large = tmp_path / "large"
    large.mkdir()
    (large / "bad").write_bytes(os.urandom(17 * MIB))
    other = make_store(tmp_path / "other")
    stored = other, save(other, large).snapshot, None
    damaged_chunk(other, 30_000)
    with pytest.raises(Damaged, match=r"bad: chunk .* is damaged"):
        put(stored, tmp_path / "none", form)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large", "other", "small", "source", "store"]


def test_a_zip_of_very_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of the entries until the end goes to disk, and nothing of it stays there."""
    monkeypatch.setattr(SpillTable.__init__, "__defaults__", (20_000,))
    monkeypatch.setattr(spill, "_BATCH", 5_000)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"file-{number}").write_text(f"{number}")
    path = make_store(tmp_path / "store")
    made: list[str] = []
    opened = spill._open

    def told(directory: str) -> object:
        made.append(directory)
        return opened(directory)

    monkeypatch.setattr(spill, "_open", told)
    put((path, save(path, source).snapshot, None), tmp_path / "x.zip", "zip")
    assert [Path(directory).parent for directory in made if Path(directory).parent == tmp_path] == [tmp_path]
    with zipfile.ZipFile(tmp_path / "x.zip") as found:
        assert found.testzip() is None
        for info in found.infolist():
            assert found.read(info) == (source / info.filename).read_bytes()
        assert len(found.infolist()) == 300
    assert sorted(os.listdir(tmp_path)) == ["source", "store", "x.zip"]


def test_a_path_that_no_zip_can_hold(tmp_path: Path) -> None:
    """It is left out, and told; the longest one is held."""
    metadata = Metadata(Stat(stat.S_IFREG | 0o644, 0, 0, 0, 0, 0), (), NO_ACL, None, None)
    entry = Entry("file", b"x", 1, metadata, 0, 0, None, b"", 0, 0, 0, 0, 0, 0)
    written = io.BytesIO()
    with closing(ZipWriter(written, str(tmp_path))) as writer:
        with pytest.raises(NotHeld, match="too long"):
            writer.add(Member(b"d/" * 32768 + b"x", entry, lambda start, end: ()), b"")
        assert writer.add(Member(b"d/" * 32766 + b"x", entry, lambda start, end: ()), b"") == []
        writer.finish()
    with zipfile.ZipFile(written) as found:
        assert [len(name) for name in found.namelist()] == [65533]


def test_a_zip_that_was_given_up_writes_nothing_later(tmp_path: Path) -> None:
    """Its descriptor may belong to another file by then."""
    written = io.BytesIO()
    writer = ZipWriter(written, str(tmp_path))
    writer.close()
    del writer
    gc.collect()
    assert written.getvalue() == b""


def test_full_disk(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(12 * MIB))
    path = make_store(tmp_path / "store")
    save(path, source)
    with small_file_system(tmp_path, 8 * MIB) as disk:
        done = call("--store", path, "restore", "latest", disk / "x.tar", "--format", "tar", "--json")
        assert done.code == 40 and "x.tar" in done.error["message"]
        assert [file for file in disk.iterdir() if file.name != "lost+found"] == []


def test_problems_are_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    path = make_store(tmp_path / "store")
    heard: list[Event] = []
    with Store.open(path) as store:
        ref = save(path, source).snapshot
        snapshot = Snapshot(store, ref)
        export(snapshot, snapshot.restorable(), str(tmp_path / "x"), "zip", verify=True, listener=heard.append)
    (problem,) = [event for event in heard if isinstance(event, FileProblem)]
    assert problem == FileProblem(b"/fifo", "a fifo has no place in a zip file", "not-restored")


@pytest.mark.parametrize("form", ["tar", "zip", "pxar"])
def test_parts(tmp_path: Path, form: Format) -> None:
    """Patterns and single paths choose what goes into a file, too; links to what stays out become files."""
    source = tmp_path / "source"
    for name in ("a/one", "a/two", "b/three"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    os.link(source / "a/one", source / "b/link")
    os.link(source / "a/one", source / "b/other")
    path = make_store(tmp_path / "store")
    stored = path, save(path, source).snapshot, None
    cases: list[tuple[RestoreOptions, set[str]]] = [
        (RestoreOptions(include=("/b",)), {"b", "b/link", "b/other", "b/three"}),
        (RestoreOptions(exclude=("two", "/b")), {"a", "a/one"}),
        (RestoreOptions(include=("three",)), {"b", "b/three"}),
        (RestoreOptions(path=b"/b"), {"link", "other", "three"}),
        (RestoreOptions(path=b"/b/link"), {"link"}),
    ]
    for number, (options, expected) in enumerate(cases):
        file, out = tmp_path / f"{number}.{form}", tmp_path / f"out-{number}-{form}"
        with Store.open(path, read_only=True) as store:
            snapshot = Snapshot(store, stored[1])
            export(snapshot, snapshot.restorable(), str(file), form, verify=True, listener=ignore, options=options)
        out.mkdir()
        if form == "tar":
            subprocess.run(["tar", "-xpf", file, "-C", out], check=True)
        elif form == "zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(out)
        else:
            other = make_store(tmp_path / f"store-{number}")
            assert call("--store", other, "import", file).code == 0
            out.rmdir()
            assert call("--store", other, "restore", "latest", out).code == 0
        assert {str(entry.relative_to(out)) for entry in out.rglob("*")} == expected
        for name in expected:
            if (out / name).is_file():
                start = "a/one" if name.rpartition("/")[2] in ("link", "other", "one") else "b/three"
                assert (out / name).read_text() == start
    mixed = call("--store", path, "restore", "latest", tmp_path / "x", "--format", form, "--overwrite", "always")
    assert mixed.code == 2


@pytest.mark.parametrize(
    "name", ["hard link to a hard link", "hard link target that is not in the archive", "hard link through a symlink"]
)
def test_links_that_lead_astray(tmp_path: Path, name: str) -> None:
    """Not to a file that is not in the archive, nor out of the directory that a tar is unpacked in."""
    archive = corpus()[f"v2 {name}"]
    path = make_store(tmp_path / "store")
    with Store.open(path) as store:
        ref = plant(store, 1, archive.archive, archive.payload)
    for form in ("tar", "pxar"):
        result = put((path, ref, None), tmp_path / form, form)
        assert result.kinds == {"damaged": 1}


def test_a_device_no_tar_can_name(tmp_path: Path) -> None:
    archive = corpus()["v1 device 0xffffffffffffffff:0xffffffffffffffff"]
    path = make_store(tmp_path / "store")
    with Store.open(path) as store:
        ref = plant(store, 1, archive.archive, archive.payload)
    assert put((path, ref, None), tmp_path / "x.tar", "tar").kinds == {"not-restored": 1}


def test_half_a_zip_has_no_end(tmp_path: Path) -> None:
    """Nothing is written behind an error: not to stdout, not to another file with the same number."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("text")
    (source / "bad").write_bytes(os.urandom(17 * MIB))
    path = make_store(tmp_path / "store")
    save(path, source)
    damaged_chunk(path, 30_000)
    out = tmp_path / "out"
    with out.open("wb") as file:
        done = subprocess.run(
            [*command("--store", path, "restore", "latest", "-", "--format", "zip")],
            stdout=file, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 20 and "Traceback" not in done.stderr
    assert b"PK\x05\x06" not in out.read_bytes()


def test_links_to_what_a_tar_has_no_place_for(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(source / "a"))
    os.link(source / "a", source / "b")
    path = make_store(tmp_path / "store")
    result = put((path, save(path, source).snapshot, None), tmp_path / "x.tar", "tar")
    assert result.kinds == {"not-restored": 2}
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == ["."]
