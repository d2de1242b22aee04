"""Snapshots seen through FUSE are what a restore gives, and what was saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import Mode
from archiver.store.layout import GroupRef, SnapshotRef
from formats.crypt import CryptConfig
from tests.attributes import GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, acl_value
from tests.cli.command import ask, call, process
from tests.compare import NODUMP, NOT_KEPT, differences, snapshot_tree
from tests.golden_store import ENCRYPTED, PLAIN, TREES, expected, listing, unpack, write_key
from tests.mounting import PATIENCE, is_mounted, mounted, need_fuse, wait_until
from tests.random_trees import build_plain
from tests.stores import KEY, bring_back, chunk_files, make_store, save
from tests.trees import build_features, unlock_tree

MODES: tuple[Mode, ...] = ("metadata", "legacy")
Features = tuple[Path, Path, dict[str, SnapshotRef]]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Features]:
    """A store with the tree that has everything, in each mode; the tree; the snapshots by mode."""
    need_fuse()
    base = tmp_path_factory.mktemp("features")
    tree = base / "tree"
    build_features(tree, as_root=os.geteuid() == 0)
    store = make_store(base / "store")
    found: dict[str, SnapshotRef] = {}
    for number, mode in enumerate(MODES):
        time = 1_700_000_000 + number
        found[mode] = save(store, tree, group=GroupRef("", "host", mode), mode=mode, time=time).snapshot
    yield store, tree, found
    unlock_tree(tree)


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_there(features: Features, tmp_path: Path, mode: str) -> None:
    """By an independent walk: modes, owners, times, attributes, ACLs, devices, links, flags, project ids, contents."""
    store, tree, found = features
    arguments = ("--store", store, "mount", str(found[mode]), "--archive", "tree.pxar")
    with mounted(tmp_path / "mnt", *arguments) as mount:
        assert differences(tree, mount.place, ignore=NOT_KEPT - {"nodump"}) == []
        link = mount.place / "links/m-near/big"
        assert link.stat().st_nlink == 6 and link.stat().st_ino == (mount.place / "links/z/far/big-0").stat().st_ino


def test_as_restored(features: Features, tmp_path: Path) -> None:
    """In the whole store, and a restored tree."""
    store, _, found = features
    ref = found["metadata"]
    bring_back(store, ref, tmp_path / "out", verify=False)
    with mounted(tmp_path / "mnt", "--store", store, "mount") as mount:
        assert differences(tmp_path / "out", mount.place / str(ref) / "tree.pxar") == []
        assert f"host/metadata/{os.readlink(mount.place / 'host/metadata/latest')}" == str(ref)
        assert sorted(os.listdir(mount.place / "host")) == sorted(MODES)
    unlock_tree(tmp_path / "out")


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_random_trees(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """Several archives in a snapshot, everything with many chunks; read by several at once, anywhere."""
    need_fuse()
    store, trees = make_store(tmp_path / "store"), {}
    for number in range(2):
        build_plain(tmp_path / f"t{number}", number, files=150)
        trees[f"t{number}"] = tmp_path / f"t{number}"
    big = random.Random(5).randbytes(3 << 20)
    (trees["t0"] / "big").write_bytes(big)
    ref = save(store, trees, crypt=crypt).snapshot
    key = [] if crypt is None else ["--keyfile", str(write_key(tmp_path / "k.json", bytes(range(32))))]
    with mounted(tmp_path / "mnt", "--store", store, *key, "mount", str(ref)) as mount:
        for name, tree in trees.items():
            assert differences(tree, mount.place / f"{name}.pxar") == []
        fd = os.open(mount.place / "t0.pxar/big", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

        def read(seed: int) -> bool:
            rng = random.Random(seed)
            for _ in range(60):
                offset, size = rng.randrange(len(big) + 10), rng.choice([1, 100, 5000, 300_000])
                if os.pread(fd, size, offset) != big[offset : offset + size]:
                    return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(read, range(12)))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with ThreadPoolExecutor(4) as pool:
            whole = [pool.submit(snapshot_tree, mount.place / f"t{number % 2}.pxar") for number in range(4)]
            assert whole[0].result() == whole[2].result() and whole[1].result() == whole[3].result()
        os.close(fd)


# -- the golden datastore ----------------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    need_fuse()
    return unpack(tmp_path)


def _stripped(found: dict[str, Any]) -> dict[str, Any]:
    """What a listing tells, too."""
    names = ("mode", "uid", "gid", "mtime_ns", "target", "rdev", "xattrs", "flags", "link")
    return {key: {name: entry[name] for name in names} for key, entry in found.items()}


def test_golden(golden: Path, tmp_path: Path) -> None:
    """What a PBS has written, legacy and split, plain, signed and encrypted, in the whole store."""
    keyfile = write_key(tmp_path / "key.json")
    with mounted(tmp_path / "mnt", "--store", golden, "--keyfile", keyfile, "mount") as mount:
        assert sorted(os.listdir(mount.place)) == ["host", "ns", "vm"]
        assert os.readlink(mount.place / "host/alpha/latest") == "2023-11-16T22:13:20Z"
        for name, index in TREES.items():
            archive = index.rsplit("/", 1)[1].rsplit(".", 2)[0] + ".pxar"
            found = _stripped(snapshot_tree(mount.place / name / archive))
            wanted = expected(listing(name))
            for entry in found.values():
                entry["flags"] &= ~NODUMP  # which ``expected`` leaves out, as a restore does
            assert found == wanted, name
            restored = tmp_path / "out" / name
            assert ask("--store", golden, "--keyfile", keyfile, "restore", name, restored, "--no-verify")
            assert differences(restored, mount.place / name / archive) == []
            unlock_tree(restored)
        vm = mount.place / PLAIN[5]
        for path in vm.iterdir():
            done = process("--store", golden, "cat", PLAIN[5], path.name)
            assert done.code == 0 and path.read_bytes() == done.raw and path.stat().st_size == len(done.raw)
        assert {path.name.rpartition(".")[2] for path in vm.iterdir()} == {"img", "conf"}


def test_without_the_key(golden: Path, tmp_path: Path) -> None:
    """A snapshot says so at once; in a whole store it is listed, and nobody gets in."""
    (tmp_path / "mnt").mkdir()
    done = call("--store", golden, "mount", ENCRYPTED[0], tmp_path / "mnt")
    assert done.code == 12 and not is_mounted(tmp_path / "mnt")
    with mounted(tmp_path / "mnt", "--store", golden, "mount") as mount:
        archive = mount.place / ENCRYPTED[0] / "root.pxar"
        assert "root.pxar" in os.listdir(archive.parent) and archive.is_dir()
        for look in (lambda: os.listdir(archive), lambda: os.stat(archive / "etc")):
            with pytest.raises(PermissionError):
                look()
        blobs = [path for path in archive.parent.iterdir() if path.is_file()]
        for path in blobs:
            with pytest.raises(PermissionError):
                path.read_bytes()
        assert os.listdir(mount.place / PLAIN[0] / "root.pxar")
        assert "is encrypted" in mount.messages
    other = write_key(tmp_path / "other.json", bytes(32))
    store = ("--store", golden, "--keyfile", other)
    with mounted(tmp_path / "mnt", *store, "mount") as mount, pytest.raises(PermissionError):
        os.listdir(mount.place / ENCRYPTED[0] / "root.pxar")


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, str]:
    """A store with one snapshot of a small tree."""
    need_fuse()
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").write_bytes(b"contents\n" * 1000)
    (tree / "one").write_bytes(random.Random(1).randbytes(200_000))
    (tree / "two").write_bytes(random.Random(2).randbytes(200_000))
    return store, str(save(store, tree).snapshot)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(small: tuple[Path, str], tmp_path: Path, number: int) -> None:
    """Also while somebody has a file open, who can read on what the kernel has, or gets an error, and never hangs."""
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount", name) as mount:
        fd = os.open(mount.place / "tree.pxar/one", os.O_RDONLY)
        assert len(os.read(fd, 10)) == 10
        assert mount.stop(number) == 0, mount.messages
        assert not is_mounted(mount.place)
        with suppress(OSError):
            os.read(fd, 1 << 20)
        os.close(fd)
    assert os.listdir(tmp_path / "mnt") == []


@pytest.mark.parametrize("lazily", [False, True])
def test_unmounted_from_outside(small: tuple[Path, str], tmp_path: Path, lazily: bool) -> None:
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount", name) as mount:
        held = os.open(mount.place / "tree.pxar", os.O_RDONLY) if lazily else -1
        subprocess.run(["fusermount3", "-u", *(["-z"] if lazily else []), str(mount.place)], check=True)
        if lazily:
            assert sorted(os.listdir(held)) == ["below", "one", "two"]  # who is in there goes on
            os.close(held)
        assert mount.process.wait(PATIENCE) == 0


def test_killed(small: tuple[Path, str], tmp_path: Path) -> None:
    """Nothing is left behind: fusermount3 unmounts when its caller is gone; if it does not, one can do it by hand."""
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount", name) as mount:
        assert mount.stop(signal.SIGKILL) == -signal.SIGKILL
        assert wait_until(False, mount.place)
    with mounted(tmp_path / "mnt", "--store", store, "mount", name) as mount:
        pid = mount.process.pid
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text()), signal.SIGKILL)
        assert mount.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(OSError):
            os.listdir(mount.place)
        subprocess.run(["fusermount3", "-u", str(mount.place)], check=True)


# -- while it is in use ------------------------------------------------------------------------------------------------


def test_damage(small: tuple[Path, str], tmp_path: Path) -> None:
    """EIO and a message with the file's name, never wrong bytes; everything else can be read."""
    store, name = small
    before = {path.name: path.read_bytes() for path in (tmp_path / "tree").iterdir() if path.is_file()}
    chunk = max(chunk_files(store), key=lambda path: path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.chmod(0o644)
    chunk.write_bytes(data)
    with mounted(tmp_path / "mnt", "--store", store, "mount") as mount:
        failed = []
        for path in sorted((mount.place / name / "tree.pxar").iterdir()):
            if path.is_file():
                try:
                    assert path.read_bytes() == before[path.name]
                except OSError as error:
                    assert error.errno == 5
                    failed.append(path.name)
        assert failed and set(failed) < {"one", "two"} | set(before)
        for each in failed:
            assert f"damaged: {name}/tree.pxar/{each}: chunk {chunk.name}" in mount.messages


def test_unplugged(small: tuple[Path, str], tmp_path: Path) -> None:
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount", name) as mount:
        assert (mount.place / "tree.pxar").is_dir()
        store.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError) as caught:
            (mount.place / "tree.pxar/one").read_bytes()
        assert caught.value.errno == 5
        (tmp_path / "elsewhere").rename(store)
        assert len((mount.place / "tree.pxar/one").read_bytes()) == 200_000


def test_held(small: tuple[Path, str], tmp_path: Path) -> None:
    """What is in use is not removed; new snapshots appear in a mounted store, removed ones vanish."""
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount") as mount:
        assert os.listdir(mount.place / name) == ["tree.pxar"]
        newer = str(save(store, tmp_path / "tree", time=1_900_000_000).snapshot)
        with open(mount.place / name / "tree.pxar/one", "rb"):
            assert call("--store", store, "forget", name).code == 14
        assert call("--store", store, "forget", newer).code == 0  # nobody has looked at that one
        assert not (mount.place / newer).exists()
    assert call("--store", store, "forget", name).code == 0


def test_nothing_can_be_written(small: tuple[Path, str], tmp_path: Path) -> None:
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "mount", name, "--archive", "tree") as mount:
        for work in (
            lambda: (mount.place / "new").write_bytes(b""),
            lambda: (mount.place / "one").unlink(),
            lambda: os.utime(mount.place / "one"),
            lambda: os.open(mount.place / "one", os.O_WRONLY),
        ):
            with pytest.raises(OSError) as caught:
                work()
            assert caught.value.errno == 30


def test_who_may_look(small: tuple[Path, str], tmp_path: Path) -> None:
    """Nobody else, unless --allow-other: then as far as the saved permissions say."""
    if os.geteuid() != 0:
        pytest.skip("another user is needed")
    store, _ = small
    (tmp_path / "tree/one").chmod(0o600)
    acl = acl_value((USER_OBJ, 6, NO_ID), (USER, 4, 1000), (GROUP_OBJ, 0, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID))
    os.setxattr(tmp_path / "tree/two", "system.posix_acl_access", acl)
    name = str(save(store, tmp_path / "tree").snapshot)
    place = tmp_path / "mnt"
    other = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cat"]

    def may_read(fd: int, file: str) -> bool:
        done = subprocess.run([*other, f"/proc/self/fd/{fd}/{file}"], capture_output=True, pass_fds=(fd,), check=False)
        return done.returncode == 0

    for options, readable in ((), []), (("--allow-other",), ["two"]):
        with mounted(place, "--store", store, "mount", name, "--archive", "tree.pxar", *options) as mount:
            fd = os.open(mount.place, os.O_PATH)  # the way there is not for everybody
            assert [file for file in ("one", "two") if may_read(fd, file)] == readable
            os.close(fd)


def test_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever has a store may mount it, and read what is in it whatever the saved permissions are."""
    if os.geteuid() != 0:
        pytest.skip("root is needed to become somebody else")
    need_fuse()
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is for root alone here")
    with tempfile.TemporaryDirectory(prefix="archiver-") as directory:
        base = Path(directory)
        (base / "tree").mkdir()
        (base / "tree/secret").write_bytes(b"of root\n")
        (base / "tree/secret").chmod(0o600)
        store = make_store(base / "store")
        name = str(save(store, base / "tree").snapshot)
        (base / "mnt").mkdir()
        subprocess.run(["chown", "-R", "1000:1000", directory], check=True)
        become = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
        with mounted(base / "mnt", "--store", store, "mount", name, "--archive", "tree.pxar", wrapper=become) as mount:
            done = subprocess.run([*become, "cat", str(mount.place / "secret")], capture_output=True, check=True)
            assert done.stdout == b"of root\n"


def test_large_directory(tmp_path: Path) -> None:
    """Read in pieces, from anywhere in it, by two at the same time."""
    need_fuse()
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3000):
        (tree / f"{number:05d}-{'x' * (number % 50)}").touch()
    store = make_store(tmp_path / "store")
    name = str(save(store, tree).snapshot)
    with mounted(tmp_path / "mnt", "--store", store, "mount", name, "--archive", "tree.pxar") as mount:
        listed: list[list[str]] = [[], []]

        def read(which: int) -> None:
            listed[which] = [entry.name for entry in os.scandir(mount.place)]

        threads = [threading.Thread(target=read, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(listed[0]) == sorted(listed[1]) == sorted(os.listdir(tree))
        fd = os.open(mount.place, os.O_RDONLY)
        first = sorted(os.listdir(fd))
        assert first == sorted(os.listdir(fd)) == sorted(os.listdir(tree))  # listdir rewinds
        os.close(fd)


def test_sparse(tmp_path: Path) -> None:
    """Runs of zeros take no space, are skipped by who looks for data, and are read as zeros."""
    need_fuse()
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(40 << 20)
        file.write(b"end")
    store = make_store(tmp_path / "store")
    name = str(save(store, tree).snapshot)
    with mounted(tmp_path / "mnt", "--store", store, "mount", name, "--archive", "tree.pxar") as mount:
        path = mount.place / "sparse"
        status = path.stat()
        assert status.st_size == (40 << 20) + 3 and status.st_blocks * 512 < 2 << 20
        fd = os.open(path, os.O_RDONLY)
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        data = os.lseek(fd, hole, os.SEEK_DATA)
        assert 5 <= hole < 1 << 20 and 39 << 20 < data <= 40 << 20
        assert os.pread(fd, 100, hole) == bytes(100) and os.pread(fd, 100, 40 << 20) == b"end"
        with pytest.raises(OSError):
            os.lseek(fd, status.st_size, os.SEEK_DATA)
        os.close(fd)
        assert path.read_bytes() == (tree / "sparse").read_bytes()


def test_refusals(small: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name = small
    (tmp_path / "mnt").mkdir()
    assert call("--store", store, "mount", name, tmp_path / "none").code == 2
    for place in (store, store.parent, store / "host"):
        assert "lie in one another" in call("--store", store, "mount", name, place).err
    assert call("--store", store, "mount", "host/nobody", tmp_path / "mnt").code == 10
    assert call("--store", store, "mount", name, tmp_path / "mnt", "--archive", "none").code == 10
    assert call("--store", store, "mount", tmp_path / "mnt", "--archive", "tree").code == 2
    assert call("--store", store, "mount", "a", "b", "c").code == 2
    monkeypatch.setattr("archiver.core.fuse.connection._PROGRAMS", ("no-such-program",))
    done = call("--store", store, "mount", name, tmp_path / "mnt", "--json")
    assert done.code == 1 and "apt install fuse3" in done.error["hint"]


def test_document(small: tuple[Path, str], tmp_path: Path) -> None:
    store, name = small
    with mounted(tmp_path / "mnt", "--store", store, "--json", "mount", "latest", "--archive", "tree.pxar") as mount:
        place = str(tmp_path / "mnt")
        assert mount.document == {"schema": 1, "mountpoint": place, "snapshot": name, "archive": "tree.pxar"}
