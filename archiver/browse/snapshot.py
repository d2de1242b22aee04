"""A snapshot opened for reading: its manifest checked, its archives by the names a user gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from archiver.browse.stream import ChunkSource, ChunkStream, Cursor, SharedStream
from archiver.errors import ArchiverError, Damaged, KeyProblem, NotFound, Unsigned, UsageError
from archiver.store.chunks import ChunkReader
from archiver.store.indexes import Index, open_index
from archiver.store.layout import WRAPPED_KEY, SnapshotRef
from archiver.store.snapshots import made_with_key, read_small
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, short_fingerprint
from formats.errors import FormatError, WrongKey
from formats.manifest import FileInfo, Manifest
from formats.pxar.accessor import Accessor
from formats.pxar.decoder import Decoder
from formats.wire import Buffer

_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER


class ArchiveFiles(NamedTuple):
    """One archive and the files it consists of: one, or metadata and payload."""

    name: str  # as the user wrote it: x.pxar, x.img, x.conf
    kind: str  # tree, image, blob
    files: tuple[FileInfo, ...]


def is_named(archive: ArchiveFiles, name: str) -> bool:
    """Whether a user who writes ``name`` may mean it: ``x.pxar``, ``x``, ``x.mpxar``, or the server's file name."""
    names = {archive.name, archive.name.rsplit(".", 1)[0]}
    for file in archive.files:
        names |= {file.filename, file.filename.rsplit(".", 1)[0]}
    return name in names


class Snapshot:
    """Raises on opening: NotFound; Damaged, also when a signature was altered or taken away; KeyProblem: wrong key.

    Contents, names of files included, are handed out only when they are proven to be what was saved (``require_key``):
    of a snapshot that was made with a key by its signature, so by nobody without the key. One that nobody signed proves
    nothing; it is refused when a key is in use and its group has signed snapshots, for it may be forged from one of
    them. ``allow_unsigned`` hands out both; what is encrypted still needs its key, and what has lost its signature is
    never handed out.
    """

    def __init__(
        self,
        store: Store,
        ref: SnapshotRef,
        crypt: CryptConfig | None = None,
        *,
        manifest: Manifest | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        """``manifest``: the snapshot's own, read already."""
        self.store = store
        self.ref = ref
        self.manifest: Manifest = store.manifest(ref) if manifest is None else manifest
        self.allow_unsigned = allow_unsigned
        self.key_in_use = False  # set it for a key, too, that was not loaded because nothing in here is of it
        self.group_is_signed: bool | None = None  # whether any of its group is made with a key; None: look
        self.crypt: CryptConfig | None = None
        if self.made_with_key and self.manifest.signature is None:
            raise Damaged(f"the manifest of {ref} has lost its signature", hint="somebody may have altered it")
        if crypt is not None:
            self.unlock(crypt)

    @property
    def made_with_key(self) -> bool:
        """Whether it was encrypted or signed."""
        return made_with_key(self.manifest)

    def unlock(self, crypt: CryptConfig) -> None:
        """Take the key, which must be the one that the snapshot was made with. Raises KeyProblem, Damaged."""
        fingerprint = self.manifest.fingerprint
        self.key_in_use = True
        if fingerprint is not None and fingerprint != crypt.fingerprint:
            if self.manifest.is_signed_with(crypt):
                raise Damaged(f"the manifest of {self.ref} was altered: it names another key than its signature's")
            raise KeyProblem(
                f"{self.ref} was made with the key {short_fingerprint(fingerprint)},"
                f" the key given is {short_fingerprint(crypt.fingerprint)}"
            )
        try:
            self.manifest.check_signature(crypt)
        except WrongKey as error:
            raise KeyProblem(f"{self.ref} was made with another key: {error}") from error
        except FormatError as error:
            raise Damaged(f"the manifest of {self.ref} was altered: {error}") from error
        self.crypt = crypt

    def archives(self) -> list[ArchiveFiles]:
        """In the order of the manifest; catalogs, which only repeat what the trees say, are left out."""
        found: list[ArchiveFiles] = []
        by_name = {file.filename: file for file in self.manifest.files}
        for file in self.manifest.files:
            base, _, extension = file.filename.rpartition(".")
            if base.endswith(".ppxar"):
                name = base[: -len(".ppxar")]
                metadata = by_name.get(f"{name}.mpxar.didx")
                if metadata is None:
                    raise Damaged(f"{self.ref} has {file.filename} without its metadata")
                found.append(ArchiveFiles(f"{name}.pxar", "tree", (metadata, file)))
            elif base.endswith(".mpxar"):
                if f"{base[: -len('.mpxar')]}.ppxar.didx" not in by_name:
                    raise Damaged(f"{self.ref} has {file.filename} without its payload")
            elif base.endswith(".pxar"):
                found.append(ArchiveFiles(base, "tree", (file,)))
            elif extension == "fidx":
                found.append(ArchiveFiles(base, "image", (file,)))
            elif extension == "blob":
                found.append(ArchiveFiles(base, "blob", (file,)))
        return found

    def restorable(self) -> list[ArchiveFiles]:
        """What a whole restore restores: the trees; without any, images and blobs."""
        archives = self.archives()
        trees = [archive for archive in archives if archive.kind == "tree"]
        if not archives:
            raise NotFound(f"{self.ref} has no archives")
        return trees or archives

    def archive(self, name: str | None) -> ArchiveFiles:
        """One archive by its name (``x.pxar``, also ``x``, ``x.mpxar`` or the server's file name); without a name the
        only tree, else UsageError."""
        archives = self.archives()
        if name is None:
            trees = [archive for archive in archives if archive.kind == "tree"]
            if len(trees) == 1:
                return trees[0]
            if len(archives) == 1:
                return archives[0]
            raise UsageError(
                f"{self.ref} has {len(archives)} archives", hint=f"choose one: {', '.join(a.name for a in archives)}"
            )
        for archive in archives:
            if is_named(archive, name):
                return archive
        raise NotFound(
            f"{self.ref} has no archive {name}", hint=f"it has: {', '.join(a.name for a in archives) or 'none'}"
        )

    def index(self, file: FileInfo) -> Index:
        return open_index(self.store.layout, self.ref, file)

    def require_key(self, file: FileInfo) -> None:
        """Raises KeyProblem without the key that ``file`` is encrypted with or that proves it, Unsigned (see above)."""
        if file.filename == WRAPPED_KEY:  # for those who have lost the key, of use to nobody else
            return
        if self.made_with_key and self.crypt is None:
            fingerprint = self.manifest.fingerprint
            which = f" {short_fingerprint(fingerprint)}" if fingerprint is not None else ""
            hint = f"give its key{which} with --keyfile"
            if file.crypt_mode == "encrypt":
                raise KeyProblem(f"{self.ref} is encrypted", hint=hint)
            if not self.allow_unsigned:
                text = f"{self.ref} is signed, and whether it was altered cannot be told without its key"
                raise KeyProblem(text, hint=f"{hint}, or take it as it is with --allow-unsigned")
        elif not self.made_with_key and self.key_in_use and not self.allow_unsigned and self.is_group_signed():
            raise Unsigned(
                f"{self.ref} is unsigned, other snapshots of its group are signed: somebody may have put it there",
                hint="if you trust it: --allow-unsigned",
            )

    def is_group_signed(self) -> bool:
        """Whether any snapshot of the group claims to be made with a key."""
        if self.group_is_signed is not None:
            return self.group_is_signed
        for when in reversed(self.store.times(self.ref.group)):
            with suppress(ArchiverError):  # unfinished or damaged
                if made_with_key(self.store.manifest(SnapshotRef(self.ref.group, when))):
                    return True
        return False

    def stream(self, file: FileInfo, reader: ChunkReader | None = None) -> ChunkStream:
        """The byte stream behind an index file."""
        self.require_key(file)
        if reader is None:
            reader = self.store.reader(self.crypt)
        return ChunkStream(self.index(file), reader, encrypted=file.crypt_mode == "encrypt")

    def shared_stream(self, file: FileInfo, source: ChunkSource) -> SharedStream:
        """The same for several threads."""
        self.require_key(file)
        return SharedStream(self.index(file), source, encrypted=file.crypt_mode == "encrypt")

    def tree(self, archive: ArchiveFiles) -> Tree:
        if archive.kind != "tree":
            raise UsageError(f"{archive.name} of {self.ref} is not a directory tree")
        return Tree(self, archive)

    def contents(self, archive: ArchiveFiles) -> Iterator[Buffer]:
        """The bytes of an image or blob, piece by piece."""
        if archive.kind == "image":
            stream = self.stream(archive.files[0])
            yield from stream.pieces(0, stream.size)
        else:
            yield self.blob(archive.files[0])

    def blob(self, file: FileInfo) -> bytes:
        """Contents of a ``.blob`` file, checked against the manifest and by its own checksums."""
        self.require_key(file)
        data = self.stored_blob(file)
        try:
            return bytes(blob.decode(data, self.crypt, encrypted=_is_encrypted(file)))
        except FormatError as error:
            raise Damaged(f"{file.filename} of {self.ref} is damaged: {error}") from error

    def stored_blob(self, file: FileInfo) -> bytes:
        """The stored bytes of a ``.blob`` file; Damaged unless they are those of the manifest."""
        path = os.path.join(self.store.layout.snapshot(self.ref), file.filename)
        try:
            data = read_small(path, _LARGEST_BLOB_FILE)
        except OSError as error:
            raise Damaged(f"{file.filename} of {self.ref} cannot be read: {error.strerror}") from error
        if len(data) != file.size or sha256(data).digest() != file.csum:
            raise Damaged(f"{file.filename} of {self.ref} is not the file that its manifest describes")
        return data

    def check_blob(self, file: FileInfo) -> None:
        """Everything that can be checked of a ``.blob`` file with or without its key. Raises Damaged."""
        data = self.stored_blob(file)
        encrypted = _is_encrypted(file)
        try:
            if self.crypt is not None or not encrypted:
                blob.decode(data, self.crypt, encrypted=encrypted)
            elif not blob.BlobDecoder().check_stored(data).encrypted:
                raise Damaged(f"{file.filename} of {self.ref} is not encrypted")
        except FormatError as error:
            raise Damaged(f"{file.filename} of {self.ref} is damaged: {error}") from error


def _is_encrypted(file: FileInfo) -> bool:
    """The kind that a ``.blob`` file must have."""
    return file.crypt_mode == "encrypt" and file.filename != WRAPPED_KEY


class Tree:
    """A directory tree in a snapshot: one stream, or metadata and payload. With ``source``, which is for several
    threads, the streams are so too."""

    def __init__(self, snapshot: Snapshot, files: ArchiveFiles, source: ChunkSource | None = None) -> None:
        self.snapshot = snapshot
        self.files = files
        self.metadata_file = files.files[0]
        self.content_file = files.files[-1]
        self.split = len(files.files) == 2
        for file in files.files:
            snapshot.require_key(file)
        if source is None:
            stream: Callable[[FileInfo], ChunkStream] = partial(
                snapshot.stream, reader=snapshot.store.reader(snapshot.crypt)
            )
        else:
            stream = partial(snapshot.shared_stream, source=source)
        self.archive: ChunkStream = stream(self.metadata_file)
        self.content: ChunkStream = stream(self.content_file) if self.split else self.archive

    def decoder(self) -> Decoder:
        """A fresh sequential decoder; contents are described by their ranges in ``content``."""
        return Decoder(Cursor(self.archive))

    def accessor(self) -> Accessor:
        if not self.split:
            return Accessor(self.archive.read_at, self.archive.size)
        return Accessor(self.archive.read_at, self.archive.size, self.content.read_at, self.content.size)
