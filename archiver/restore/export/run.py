"""One export: where the file goes, what is put into it, and what became of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import IO, Any, Literal, Protocol, cast, get_args

from blake3 import blake3

from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.core.disk import explained, write_all
from archiver.core.events import FileProblem, Listener
from archiver.core.new_file import check_new, make_parents, new_file
from archiver.errors import Damaged, UsageError
from archiver.restore.export.members import Member, Members, NotHeld
from archiver.restore.export.pxar import PxarWriter
from archiver.restore.export.tar import TarWriter
from archiver.restore.export.zip import ZipWriter
from archiver.restore.run import EVERYTHING, RestoreOptions, RestoreResult, make_choice
from formats.errors import FormatError
from formats.pxar.decoder import LEAVE
from formats.wire import Buffer

Format = Literal["tar", "tar.zst", "zip", "pxar"]
FORMATS: tuple[Format, ...] = get_args(Format)
STDOUT = "-"

_GATHERED = 1 << 20  # bytes
_READ_AT_ONCE = 4 << 20
_ZSTD_LEVEL = 3


class _Writer(Protocol):
    def add(self, member: Member, below: bytes) -> list[str]: ...

    def leave(self) -> None: ...

    def finish(self) -> None: ...


def export(
    snapshot: Snapshot,
    archives: Sequence[ArchiveFiles],
    target: str,
    form: Format,
    *,
    verify: bool,
    listener: Listener,
    options: RestoreOptions = EVERYTHING,
) -> RestoreResult:
    """Write trees into the new file ``target`` (``-``: stdout), of several each below its name.

    The file is there only when it is complete. Raises UsageError and KeyProblem before anything is written; Damaged
    when an archive cannot be read to its end, or when the file does not read back as it was written. What concerns
    single entries is told as FileProblem events: damaged, not-restored, attribute.
    """
    clock = snapshot.store.clock
    began = clock.steady()
    result = RestoreResult(str(snapshot.ref), target)
    if form == "pxar" and len(archives) != 1:
        names = ", ".join(archive.name for archive in archives)
        raise UsageError("a pxar file holds one archive", hint=f"choose one with --archive: {names}")
    for archive in archives:
        if archive.kind != "tree":
            raise UsageError(f"{archive.name} is not a directory tree", hint="it is restored without --format")
        for file in archive.files:
            snapshot.require_key(file)
    with _opened(target, snapshot.store.layout.base) as sink, explained("write", sink.name):
        _write(snapshot, archives, form, sink, result.hearing(listener), result, options)
        sink.complete(verify)
    result.verified = verify and target != STDOUT
    result.duration = clock.steady() - began
    return result


@contextmanager
def _opened(target: str, store: str) -> Iterator[_Sink]:
    """Raises UsageError when no new file can be ``target``: there is something of that name, it lies in the store."""
    if target == STDOUT:
        yield _Sink(sys.stdout.fileno(), "stdout")
        return
    check_new(target, store)
    make_parents(target)
    with new_file(target) as fd:
        yield _NewFile(fd, target)


def _write(
    snapshot: Snapshot,
    archives: Sequence[ArchiveFiles],
    form: Format,
    sink: _Sink,
    listener: Listener,
    result: RestoreResult,
    options: RestoreOptions,
) -> None:
    file: Any = _compressed(sink) if form == "tar.zst" else sink
    with ExitStack() as opened:
        writer = _writer(form, file, sink, opened)
        for archive in archives:
            tree = snapshot.tree(archive)
            members = Members(tree, make_choice(tree, options), listener, links=form != "zip")
            _put(members, writer, os.fsencode(archive.name) + b"/" if len(archives) > 1 else b"", listener)
            result.entries += members.entries
            result.files += members.files
            result.bytes += members.bytes
        writer.finish()
    if file is not sink:
        file.close()


def _writer(form: Format, file: Any, sink: _Sink, opened: ExitStack) -> _Writer:
    match form:
        case "zip":
            return opened.enter_context(closing(ZipWriter(file, sink.spill_directory())))
        case "pxar":
            return PxarWriter(file.write)
        case _:
            return TarWriter(file.write)


def _compressed(sink: _Sink) -> IO[bytes]:
    import zstandard

    compressor = zstandard.ZstdCompressor(_ZSTD_LEVEL, threads=-1, write_checksum=True)
    return compressor.stream_writer(cast(IO[bytes], sink), closefd=False)


def _put(members: Members, writer: _Writer, below: bytes, listener: Listener) -> None:
    for member in members:
        if not isinstance(member, Member):
            assert member is LEAVE
            writer.leave()
            continue
        kind = "attribute"
        try:
            lost = writer.add(member, below)
        except NotHeld as error:
            lost, kind = [str(error)], "not-restored"
            members.leave_out(member.entry)
        except FormatError as error:
            raise members.ended(error) from error
        for reason in lost:
            listener(FileProblem(b"/" + member.path, reason, kind))


class _Sink:
    """Where the bytes go, gathered; a file object as far as the writers need one."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._position = 0

    def write(self, data: Buffer) -> int:
        length = len(data)
        self._pieces.append(bytes(data))
        self._gathered += length
        self._position += length
        if self._gathered >= _GATHERED:
            self.flush()
        return length

    def tell(self) -> int:
        return self._position

    def spill_directory(self) -> str:
        return tempfile.gettempdir()

    def flush(self) -> None:
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        if pieces:
            self._out(b"".join(pieces))

    def _out(self, data: bytes) -> None:
        write_all(self._fd, [data])

    def complete(self, verify: bool) -> None:
        self.flush()


class _NewFile(_Sink):
    """Keeps the sum of what it wrote."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._total = blake3()

    def spill_directory(self) -> str:
        return os.path.dirname(self.name) or "."

    def _out(self, data: bytes) -> None:
        self._total.update(data)
        super()._out(data)

    def complete(self, verify: bool) -> None:
        super().complete(verify)
        os.fsync(self._fd)
        if verify and self._read_again() != self._total.digest():
            raise Damaged(f"{self.name} does not read back as it was written", hint="its disk may be failing")

    def _read_again(self) -> bytes:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        total = blake3()
        os.lseek(self._fd, 0, os.SEEK_SET)
        while data := os.read(self._fd, _READ_AT_ONCE):
            total.update(data)
        return total.digest()
