"""What an interrupted run left in the store cannot be altered to have the next one save wrong contents."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from archiver.backup.journal import _ENTRY, _HEAD
from archiver.backup.run import CryptMode
from archiver.backup.small_files import SmallFiles
from archiver.errors import ArchiverError
from archiver.source.ahead import ReadAhead
from archiver.source.walk import SourceDirectory
from formats.crypt import CryptConfig
from tests.stores import KEY, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

ENTRY, HEADER = 40, 4096  # bytes of an index
FILES, DONE, SIZE = 40, 30, (256 << 10) - 16  # of a file with its header: a chunk of the largest size


def interrupted(path: Path, source: Path, crypt_mode: CryptMode, crypt: CryptConfig | None) -> Path:
    """The directory of a session. Each file is a chunk of its own, and all are of one size: whichever stands in an
    index fits, and has a header of the right length."""
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:02}").write_bytes(bytes([number]) * SIZE)
    real = SmallFiles.take

    def take(self: SmallFiles, directory: SourceDirectory, name: bytes, stat: os.stat_result, ahead: ReadAhead) -> bool:
        if name == b"%02d" % DONE:
            end = time.monotonic() + 30
            while written(path) < DONE - 8 and time.monotonic() < end:  # by other threads, eight at a time
                time.sleep(0.01)
            raise ArchiverError("interrupted")
        return real(self, directory, name, stat, ahead)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ArchiverError, match="interrupted"):
        patch.setattr(SmallFiles, "take", take)
        save(path, source, mode="metadata", crypt=crypt, crypt_mode=crypt_mode)
    (session,) = (path / ".archiver" / "sessions").iterdir()
    return session


def written(path: Path) -> int:
    """Entries in the index of the run that goes on."""
    (index,) = (path / ".archiver" / "sessions").glob("*/snapshot/tree.ppxar.didx")
    return (index.stat().st_size - HEADER) // ENTRY


def entries_of(index: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(index.read_bytes()[HEADER:], np.uint8).reshape(-1, ENTRY).copy()


def exchange_chunks(session: Path) -> None:
    index = session / "snapshot/tree.ppxar.didx"
    entries = entries_of(index)
    sizes = np.diff(entries[:, :8].copy().view("<u8").ravel(), prepend=np.uint64(0))
    same = [number for number in range(1, len(entries)) if sizes[number] == sizes[5]]
    assert len(same) > DONE / 2
    entries[same, 8:] = entries[np.roll(same, 1), 8:]
    index.write_bytes(index.read_bytes()[:HEADER] + entries.tobytes())


def exchange_rows(session: Path) -> None:
    """Files in the journal get each other's places; with a check that anybody can make."""
    journal, index = session / "tree.journal", session / "snapshot/tree.ppxar.didx"
    data, made = journal.read_bytes(), b""
    stream = index.read_bytes()[8:24]
    while data:
        length, _ = _HEAD.unpack_from(data)
        block = data[_HEAD.size : _HEAD.size + length]
        data = data[_HEAD.size + length :]
        if length % _ENTRY.size == 0:
            rows = list(_ENTRY.iter_unpack(block))
            places = [place for _, _, place in rows]
            moved = zip(rows, [*places[1:], places[0]], strict=True)
            block = b"".join(_ENTRY.pack(system, row, place) for (system, row, _), place in moved)
        made += _HEAD.pack(len(block), blake3(stream).update(block).digest(length=16)) + block
    journal.write_bytes(made)


def take_proof_away(session: Path) -> None:
    exchange_chunks(session)
    (session / "tree.proof").unlink(missing_ok=True)


ATTACKS: list[Callable[[Path], None]] = [exchange_chunks, exchange_rows, take_proof_away]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("crypt_mode", ["encrypt", "sign-only"])
def test_attack(tmp_path: Path, crypt_mode: CryptMode, attack: Callable[[Path], None]) -> None:
    path, source = make_store(tmp_path / "store"), tmp_path / "source"
    session = interrupted(path, source, crypt_mode, KEY)
    attack(session)
    saved = save(path, source, mode="metadata", crypt=KEY, crypt_mode=crypt_mode)
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out", KEY) == []
    assert saved.result.files.unchanged == 0  # nothing of it was believed


@pytest.mark.parametrize("attack", ATTACKS[:2])
def test_the_attacks_would_do_harm(tmp_path: Path, attack: Callable[[Path], None]) -> None:
    """Without a key nobody can tell."""
    path, source = make_store(tmp_path / "store"), tmp_path / "source"
    attack(interrupted(path, source, "none", None))
    saved = save(path, source, mode="metadata")
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out") != []


@pytest.mark.parametrize("crypt_mode", ["encrypt", "sign-only"])
def test_what_is_proven_is_taken_over(tmp_path: Path, crypt_mode: CryptMode) -> None:
    """As much as without a key, also from an index that was cut."""
    for cut in (0, 3):
        path, source = make_store(tmp_path / f"store-{cut}"), tmp_path / f"source-{cut}"
        session = interrupted(path, source, crypt_mode, KEY)
        index = session / "snapshot/tree.ppxar.didx"
        os.truncate(index, index.stat().st_size - cut * ENTRY)
        saved = save(path, source, mode="metadata", crypt=KEY, crypt_mode=crypt_mode)
        assert saved.result.files.unchanged >= DONE - 8 - (8 if cut else 0) - 1  # entries are written eight at a time
        assert restored_differences(path, saved.snapshot, source, tmp_path / f"out-{cut}", KEY) == []


def test_session_of_another_stream(tmp_path: Path) -> None:
    """The index of one interrupted run with the journal and proof of another, all of the same key."""
    path = make_store(tmp_path / "store")
    first = interrupted(path, tmp_path / "one", "encrypt", KEY)
    kept = shutil.copytree(first, tmp_path / "kept")
    shutil.rmtree(first)
    source = tmp_path / "two"
    session = interrupted(path, source, "encrypt", KEY)
    data = bytearray((kept / "snapshot/tree.ppxar.didx").read_bytes())
    data[8:24] = (session / "snapshot/tree.ppxar.didx").read_bytes()[8:24]  # under the uuid of the other
    (session / "snapshot/tree.ppxar.didx").write_bytes(data)
    shutil.copy(kept / "tree.proof", session / "tree.proof")
    saved = save(path, source, mode="metadata", crypt=KEY)
    assert saved.result.files.unchanged == 0
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out", KEY) == []
