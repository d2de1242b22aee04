"""What several interrupted runs left, used by one: the journal of each is about its own contents alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.small_files import SmallFiles
from archiver.core.clock import Clock
from archiver.errors import ArchiverError
from archiver.source.ahead import ReadAhead
from archiver.source.walk import SourceDirectory
from formats.crypt import CryptConfig
from tests.random_trees import noise
from tests.stores import KEY, Ahead, make_store, restored_differences, save

ENTRY, HEADER = 40, 4096  # bytes of an index


class Later(Ahead):
    """Sessions are told apart by their times."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def now(self) -> int:
        return super().now() + self.seconds

    def now_ns(self) -> int:
        return super().now_ns() + self.seconds * 10**9


def interrupt(store: Path, source: Path, last: str, clock: Clock, crypt: CryptConfig | None) -> None:
    """A run that ends when it comes to the file ``last``."""
    real = SmallFiles.take

    def take(self: SmallFiles, directory: SourceDirectory, name: bytes, stat: os.stat_result, ahead: ReadAhead) -> bool:
        if name == os.fsencode(last):
            raise ArchiverError("interrupted")
        return real(self, directory, name, stat, ahead)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ArchiverError, match="interrupted"):
        patch.setattr(SmallFiles, "take", take)
        save(store, source, mode="metadata", clock=clock, crypt=crypt)


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_an_index_that_lacks_what_the_journal_names(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """Journal and index are written each in its time. Behind the end of one index the next one begins."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    for number in range(40):
        (source / f"{number:02}").write_bytes(noise(number, 300_000))
    interrupt(store, source, "20", Later(0), crypt)
    for number in range(20):
        (source / f"{number:02}").write_bytes(noise(100 + number, 300_000))
    interrupt(store, source, "20", Later(100), crypt)
    sessions = sorted((store / ".archiver" / "sessions").iterdir())
    assert len(sessions) == 2
    index = sessions[1] / "snapshot" / "tree.ppxar.didx"
    os.truncate(index, HEADER + 16 * ENTRY)
    saved = save(store, source, mode="metadata", clock=Later(200), crypt=crypt)
    assert saved.result.files.unchanged > 0
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out", crypt) == []
