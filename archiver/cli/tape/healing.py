"""A media set as a place where heal looks for lost chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from blake3 import blake3

from archiver.cli.output import Output
from archiver.cli.tape.group import opened, pause, waited_for
from archiver.heal.candidates import Candidates, FoundChunk
from archiver.heal.damage import LostChunk
from archiver.tape.keys import TapeKeys
from archiver.tape.restore.job import opened_set
from archiver.tape.source import ChunksOnMedia
from formats import blob
from formats.blob import BlobDecoder
from formats.crypt import CryptConfig
from formats.errors import FormatError


class MediaSetChunks(Candidates):
    """Of each medium only the files are read that hold something that is lost."""

    def __init__(
        self, held: ExitStack, output: Output, name: str, drive: str | None, crypt: CryptConfig | None
    ) -> None:
        """The drive and the set are in use until ``held`` is closed. Raises NotFound, TargetAbsent, Locked."""
        access = held.enter_context(opened(drive))
        keys = TapeKeys.default(os.environ)
        found = held.enter_context(
            opened_set(access, name, keys, output.hear, wait_seconds=waited_for(None), pause=pause)
        )
        self.name = f"the media set {name}"
        self._source = ChunksOnMedia(found.known, found.media, output.hear)
        self._decoders = {False: BlobDecoder(), True: BlobDecoder(crypt)}

    def chunks(self, lost: Sequence[LostChunk]) -> Iterator[FoundChunk]:
        wanted: dict[bytes, list[LostChunk]] = {}
        for each in lost:
            wanted.setdefault(each.digest, []).append(each)
        for digest, data in self._source.find(list(wanted)):
            for each in wanted[digest]:
                if self._is_right(each, data):
                    view = memoryview(data)
                    header, body = view[: blob.PLAIN_HEADER], view[blob.PLAIN_HEADER :]
                    is_proven = each.with_key or not each.encrypted
                    yield FoundChunk(each, header, body, blake3(data).digest(), is_proven)

    def _is_right(self, lost: LostChunk, data: bytes) -> bool:
        try:
            if lost.encrypted and not lost.with_key:
                return self._decoders[False].check_stored(data).encrypted
            self._decoders[lost.with_key].decode_chunk(
                data, digest=lost.digest, size=lost.size, encrypted=lost.encrypted
            )
        except FormatError:
            return False
        return True
