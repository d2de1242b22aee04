"""Blobs that are too large to hold: written and read through a seekable file of the caller, a MiB at a time.

Writing. CRC and tag are known at the end, so the header is patched then, and the file's SHA-256 (which a manifest
wants) is taken by reading the file back. Whether the compressed form is smaller is known at the end too, but what was
written cannot be taken back (the same IV must not encrypt two texts). So the first MiB decides: content that ends
there is encoded as in memory, byte for byte; of longer content the whole is compressed if its first MiB gets no longer
by it. In the worst case, a compressible start of something incompressible, the blob is 3 bytes per 128 KiB longer than
the rule of spec blob-index-crypto.md 2.4 gives, and as readable. Such a frame does not say its content size.

Reading. Pass 1 reads everything and checks CRC, tag and SHA-256, giving nothing out and decompressing nothing. Pass 2
reads again and gives the plain text out; CRC and tag are computed again, in case the file changed in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from formats.blob.codec import BlobEncoder
from formats.blob.layout import (
    ENCRYPTED_HEADER,
    MAX_BLOB_SIZE,
    PLAIN_HEADER,
    BlobInfo,
    build_header,
    check_crc,
    check_kind,
    inspect,
    payload_crc,
)
from formats.blob.zstd import LEVEL, FrameWalker
from formats.crypt import CryptConfig, finish_decryption, gcm_decryptor, gcm_encryptor
from formats.errors import FormatError, IntegrityError, KeyMissing, LimitExceeded
from formats.wire import Buffer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext
    from zstandard import ZstdCompressionObj

PIECE = 1 << 20


class BlobWriter:
    """Writes one blob to ``file`` (binary, seekable, readable) at its current position, which must be its end.

    ``iv`` (16 bytes, never used before) is given with ``crypt`` and only then. Feed it with ``write``, end it with
    ``finish``; the file stays open and is not flushed. Raises LimitExceeded above 128 MiB of content.
    """

    def __init__(
        self, file: BinaryIO, crypt: CryptConfig | None = None, iv: bytes | None = None, compress: bool = True
    ) -> None:
        if (iv is None) != (crypt is None):
            raise ValueError("an IV is needed with a key, and only with one")
        self._file = file
        self._start = file.tell()
        self._crypt = crypt
        self._iv = iv
        self._compress = compress
        self._held: bytearray | None = bytearray()  # the first MiB, until there is more
        self._compressor: ZstdCompressionObj | None = None
        self._encryptor: AEADEncryptionContext | None = None
        self._content_size = 0
        self._size = 0
        self._crc = 0

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._content_size += len(view)
        if self._content_size > MAX_BLOB_SIZE:
            raise LimitExceeded("blob content", expected=f"at most {MAX_BLOB_SIZE} bytes", got=self._content_size)
        if self._held is not None:
            room = PIECE - len(self._held)
            self._held += view[:room]
            if len(view) <= room:
                return
            view = view[room:]
            self._begin(self._held)
        for pos in range(0, len(view), PIECE):
            self._feed(view[pos : pos + PIECE])

    def finish(self) -> tuple[int, bytes]:
        """(size, SHA-256) of the encoded blob, which is complete in the file now."""
        if self._held is not None:
            header, body = BlobEncoder(self._crypt).encode(self._held, self._iv, self._compress)
            _write_all(self._file, header)
            _write_all(self._file, body)
            return len(header) + len(body), hashlib.sha256(header + bytes(body)).digest()
        if self._compressor is not None:
            self._store(self._compressor.flush())
        tag = None
        if self._encryptor is not None:
            self._encryptor.finalize()
            tag = self._encryptor.tag
        header = build_header(self._compressor is not None, self._crc, self._iv, tag)
        self._file.seek(self._start)
        _write_all(self._file, header)
        self._file.seek(self._start)
        sha, size = hashlib.sha256(), 0
        while piece := self._file.read(PIECE):
            sha.update(piece)
            size += len(piece)
        if size != len(header) + self._size:
            raise FormatError("blob read back", expected=f"{len(header) + self._size} bytes", got=size)
        return size, sha.digest()

    def _begin(self, first: bytearray) -> None:
        """There is more than one piece: choose compression by the first one, and leave room for the header."""
        self._held = None
        if self._compress:
            compressor = ZstdCompressor(level=LEVEL)
            if len(compressor.compress(first)) <= len(first):
                self._compressor = compressor.compressobj()
        if self._crypt is not None and self._iv is not None:
            self._encryptor = gcm_encryptor(self._crypt.enc_key, self._iv)
        _write_all(self._file, bytes(PLAIN_HEADER if self._crypt is None else ENCRYPTED_HEADER))
        self._feed(first)

    def _feed(self, data: Buffer) -> None:
        self._store(data if self._compressor is None else self._compressor.compress(data))

    def _store(self, data: Buffer) -> None:
        body = data if self._encryptor is None else self._encryptor.update(data)
        self._crc = payload_crc(body, self._crc)
        self._size += len(body)
        _write_all(self._file, body)


def _write_all(file: BinaryIO, data: Buffer) -> None:
    view = memoryview(data)
    while view:  # an unbuffered file may take less than it was given
        view = view[file.write(view) :]


class BlobReader:
    """Reads one blob from ``file`` (binary, seekable), from its current position to its end.

    ``sha256`` is the digest that the whole encoded blob must have, ``encrypted`` the kind it must be, None for any.
    Iterating gives the plain text in pieces of at most 1 MiB, none before everything was verified. What can still fail
    after the first piece is a compressed stream that is invalid in itself, or a file that changes while it is read.
    Every failure is a FormatError: IntegrityError (CRC, tag, SHA-256), KeyMissing, LimitExceeded above ``max_size``.
    Until the iteration ends, the file's position belongs to the reader.
    """

    def __init__(
        self,
        file: BinaryIO,
        crypt: CryptConfig | None = None,
        *,
        sha256: bytes | None = None,
        encrypted: bool | None = None,
        max_size: int = MAX_BLOB_SIZE,
    ) -> None:
        self._file = file
        self._start = file.tell()
        self._crypt = crypt
        self._sha256 = sha256
        self._encrypted = encrypted
        self._max_size = max_size

    def verify(self) -> BlobInfo:
        """Pass 1 alone: everything is checked, nothing is given out."""
        sha = hashlib.sha256()
        info = self._read_header(sha)
        walker = FrameWalker() if info.compressed else None
        size = 0
        torn: FormatError | None = None
        for piece in self._payload(info, sha):
            size += len(piece)
            if walker is not None and torn is None:
                try:
                    walker.feed(piece)
                except FormatError as error:
                    torn = error  # what the CRC, the tag or the digest says about it comes first
        if self._sha256 is not None and sha.digest() != self._sha256:
            raise IntegrityError("blob SHA-256", expected=self._sha256.hex(), got=sha.hexdigest())
        if torn is not None:
            raise torn
        if walker is not None:
            walker.finish()
            size = walker.content_size or 0
        self._check_size(size)
        return info

    def __iter__(self) -> Iterator[bytes]:
        info = self.verify()
        if self._read_header(hashlib.sha256()) != info:
            raise IntegrityError("blob changed while it was read")
        payload = self._payload(info, None)
        if info.compressed:
            yield from self._unpacked(payload)
        else:
            yield from payload

    def _read_header(self, sha: hashlib._Hash) -> BlobInfo:
        self._file.seek(self._start)
        head = self._file.read(ENCRYPTED_HEADER)
        info = inspect(head)
        check_kind(info, self._encrypted)
        if info.encrypted and self._crypt is None:
            raise KeyMissing("blob is encrypted, and no key was given")
        sha.update(head[: info.header_size])
        self._file.seek(self._start + info.header_size)
        return info

    def _payload(self, info: BlobInfo, sha: hashlib._Hash | None) -> Iterator[bytes]:
        """The decrypted, still compressed payload; CRC and tag are checked when it ends."""
        decryptor = None
        if self._crypt is not None and info.iv is not None and info.tag is not None:
            decryptor = gcm_decryptor(self._crypt.enc_key, info.iv, info.tag)
        crc = 0
        while piece := self._file.read(PIECE):
            crc = payload_crc(piece, crc)
            if sha is not None:
                sha.update(piece)
            yield piece if decryptor is None else decryptor.update(piece)
        check_crc(info, crc)
        if decryptor is not None:
            finish_decryption(decryptor)

    def _unpacked(self, payload: Iterator[bytes]) -> Iterator[bytes]:
        size = 0
        try:
            source = cast("BinaryIO", _Source(payload))
            with ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:
                while piece := reader.read(PIECE):
                    size += len(piece)
                    self._check_size(size)
                    yield piece
        except ZstdError as error:
            raise FormatError(f"compressed blob content: {error}") from None

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise LimitExceeded("blob content", expected=f"at most {self._max_size} bytes", got=size)


class _Source:
    """An iterator of pieces as the file that the decompressor wants."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _size: int) -> bytes:
        return next(self._pieces, b"")
