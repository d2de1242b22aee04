"""A snapshot opened for reading: its manifest checked, its archives by the names a user gives them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from archiver.browse.stream import ChunkStream, Cursor
from archiver.errors import Damaged, KeyProblem, NotFound, UsageError
from archiver.store.chunks import ChunkReader
from archiver.store.indexes import Index, open_index
from archiver.store.layout import SnapshotRef
from archiver.store.snapshots import read_small
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, short_fingerprint
from formats.errors import FormatError, KeyMissing, WrongKey
from formats.manifest import FileInfo, Manifest
from formats.pxar.accessor import Accessor
from formats.pxar.decoder import Decoder
from formats.wire import Buffer

_LARGEST_BLOB_FILE = blob.MAX_BLOB_SIZE + blob.ENCRYPTED_HEADER
WRAPPED_KEY = "rsa-encrypted.key.blob"  # carries the snapshot's mode but is never encrypted with its key


@dataclass(frozen=True, slots=True)
class ArchiveFiles:
    """One archive and the files it consists of: one, or metadata and payload."""

    name: str  # as the user wrote it: x.pxar, x.img, x.conf
    kind: str  # tree, image, blob
    files: tuple[FileInfo, ...]


class Snapshot:
    """Raises on opening: NotFound, Damaged, KeyProblem (wrong key, or a signature that does not verify)."""

    def __init__(
        self, store: Store, ref: SnapshotRef, crypt: CryptConfig | None = None, *, manifest: Manifest | None = None
    ) -> None:
        """``manifest``: the snapshot's own, read already."""
        self.store = store
        self.ref = ref
        self.manifest: Manifest = store.manifest(ref) if manifest is None else manifest
        self.crypt: CryptConfig | None = None
        if crypt is not None:
            self.unlock(crypt)

    @property
    def protected(self) -> bool:
        """Whether it was encrypted or signed."""
        return self.manifest.fingerprint is not None or any(file.crypt_mode != "none" for file in self.manifest.files)

    def unlock(self, crypt: CryptConfig) -> None:
        """Take the key, which must be the one that the snapshot was made with. Raises KeyProblem, Damaged."""
        fingerprint = self.manifest.fingerprint
        self.crypt = crypt
        if fingerprint is not None and fingerprint != crypt.fingerprint:
            raise KeyProblem(
                f"{self.ref} was made with the key {short_fingerprint(fingerprint)},"
                f" the key given is {short_fingerprint(crypt.fingerprint)}"
            )
        if not self.protected:
            return
        try:
            signed = self.manifest.check_signature(crypt)
        except WrongKey as error:
            raise KeyProblem(f"{self.ref} was made with another key: {error}") from error
        except FormatError as error:
            raise Damaged(f"the manifest of {self.ref} was altered: {error}") from error
        if not signed:
            raise Damaged(f"the manifest of {self.ref} has lost its signature", hint="somebody may have altered it")

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
            names = {archive.name, archive.name.rsplit(".", 1)[0]}
            for file in archive.files:
                names |= {file.filename, file.filename.rsplit(".", 1)[0]}
            if name in names:
                return archive
        raise NotFound(
            f"{self.ref} has no archive {name}", hint=f"it has: {', '.join(a.name for a in archives) or 'none'}"
        )

    def index(self, file: FileInfo) -> Index:
        return open_index(self.store.layout, self.ref, file)

    def require_key(self, file: FileInfo) -> None:
        """Raises KeyProblem when ``file`` is encrypted and no key was given."""
        if file.crypt_mode == "encrypt" and self.crypt is None and file.filename != WRAPPED_KEY:
            fingerprint = self.manifest.fingerprint
            which = f" {short_fingerprint(fingerprint)}" if fingerprint is not None else ""
            raise KeyProblem(f"{self.ref} is encrypted", hint=f"give its key{which} with --keyfile")

    def stream(self, file: FileInfo, reader: ChunkReader | None = None) -> ChunkStream:
        """The byte stream behind an index file."""
        self.require_key(file)
        if reader is None:
            reader = self.store.reader(self.crypt)
        return ChunkStream(self.index(file), reader, encrypted=file.crypt_mode == "encrypt")

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
            return bytes(blob.decode(data, self.crypt))
        except KeyMissing as error:
            raise KeyProblem(
                f"{file.filename} of {self.ref} is encrypted", hint="give the key with --keyfile"
            ) from error
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
        try:
            if blob.inspect(data).encrypted and self.crypt is None:
                blob.BlobDecoder(None).check_stored(data)
            else:
                blob.decode(data, self.crypt)
        except FormatError as error:
            raise Damaged(f"{file.filename} of {self.ref} is damaged: {error}") from error


class Tree:
    """A directory tree in a snapshot: one stream, or metadata and payload."""

    def __init__(self, snapshot: Snapshot, files: ArchiveFiles) -> None:
        self.snapshot = snapshot
        self.files = files
        self.metadata_file = files.files[0]
        self.content_file = files.files[-1]
        self.split = len(files.files) == 2
        for file in files.files:
            snapshot.require_key(file)
        reader = snapshot.store.reader(snapshot.crypt)
        self.archive = snapshot.stream(self.metadata_file, reader)
        self.content = snapshot.stream(self.content_file, reader) if self.split else self.archive

    def decoder(self) -> Decoder:
        """A fresh sequential decoder; contents are described by their ranges in ``content``."""
        return Decoder(Cursor(self.archive))

    def accessor(self) -> Accessor:
        if not self.split:
            return Accessor(self.archive.read_at, self.archive.size)
        return Accessor(self.archive.read_at, self.archive.size, self.content.read_at, self.content.size)
