"""DataBlob: the container of every chunk and of every ``*.blob`` file (spec blob-index-crypto.md 2).

| module   | holds                                                                        |
|----------|------------------------------------------------------------------------------|
| layout   | magics, header, limits, the CRC                                              |
| zstd     | the frame structure of a zstd stream, followed without decompressing         |
| codec    | whole blobs in memory: BlobEncoder, BlobDecoder                              |
| stream   | blobs too large to hold: BlobWriter, BlobReader                              |
"""

from __future__ import annotations

from formats.blob.codec import BlobDecoder, BlobEncoder, decode, encode
from formats.blob.layout import (
    ENCRYPTED_HEADER,
    ENCRYPTED_MAGIC,
    ENCRYPTED_ZSTD_MAGIC,
    MAX_BLOB_SIZE,
    PLAIN_HEADER,
    PLAIN_MAGIC,
    PLAIN_ZSTD_MAGIC,
    BlobInfo,
    inspect,
)
from formats.blob.stream import BlobReader, BlobWriter

__all__ = [
    "ENCRYPTED_HEADER",
    "ENCRYPTED_MAGIC",
    "ENCRYPTED_ZSTD_MAGIC",
    "MAX_BLOB_SIZE",
    "PLAIN_HEADER",
    "PLAIN_MAGIC",
    "PLAIN_ZSTD_MAGIC",
    "BlobDecoder",
    "BlobEncoder",
    "BlobInfo",
    "BlobReader",
    "BlobWriter",
    "decode",
    "encode",
    "inspect",
]
