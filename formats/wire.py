"""Little-endian numbers, and what the codecs read from."""

from __future__ import annotations

import struct

Buffer = bytes | bytearray | memoryview

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
