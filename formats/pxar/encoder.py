"""Writes archives, piece by piece (spec pxar.md 4-9, 12).

Version 1 (one stream): an entry, then its contents. Version 2 (split): contents go to the payload stream as PAYLOAD
items, and entries of the archive stream refer to them. ``write_payload`` decides which one is made.

    archive, version 1     entry of the root
    archive, version 2     FORMAT_VERSION [PRELUDE] entry of the root
    payload stream         PAYLOAD_START_MARKER { PAYLOAD | padding } PAYLOAD_TAIL_MARKER

The encoder makes headers and entries and counts positions. The caller writes contents into the stream itself and says
so with ``advance``. References grow strictly and never overlap: sequential readers depend on it.

Wrong calls (unbalanced directories, incomplete contents, a mode that does not fit the call) are ValueError, values that
the format cannot hold are EncodeError. Both leave the encoder and its output as they were.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import cache

from siphashc import siphash

from formats.errors import FormatError
from formats.pxar import constants as c
from formats.pxar.goodbye import HASH_KEY, build
from formats.pxar.items import Entry
from formats.pxar.metadata import NO_ACL, Acl, Metadata, Stat
from formats.wire import Buffer

_Write = Callable[[Buffer], object]
PlainFile = tuple[bytes, tuple[int, int, int, int, int, int], int]  # name, fields of a Stat, size

# Between the parts of a regular file's items: the end of one item and the header of the next.
_ENTRY_HEAD = b"\0" + c.HEADER.pack(c.ENTRY, c.ENTRY_SIZE)
_REF_HEAD = bytes(4) + c.HEADER.pack(c.PAYLOAD_REF, c.REF_SIZE)


class EncodeError(FormatError):
    """A name, link, attribute or number that the format cannot hold."""


class Encoder:
    """Writes one archive through ``write`` and, for version 2, ``write_payload``.

    ``position`` and ``payload_position`` are where the next byte of each stream goes, contents included. ``last``: the
    items of the entry that was added last, without its contents.
    ``prelude`` (version 2 only) is stored behind the version.
    """

    __slots__ = (
        "_children",
        "_directory_start",
        "_finished",
        "_left",
        "_outer",
        "_references_end",
        "_write",
        "_write_payload",
        "last",
        "payload_position",
        "position",
    )

    def __init__(self, write: _Write, write_payload: _Write | None = None, *, prelude: bytes | None = None) -> None:
        self._write = write
        self._write_payload = write_payload
        self.position = 0
        self.payload_position = 0
        self.last = b""
        self._children: array[int] | None = None  # of the innermost open directory, see goodbye.build
        self._directory_start = 0  # what that directory's goodbye table points to
        self._outer: list[tuple[array[int], int, int, int]] = []  # of the directories around it; hash, FILENAME of it
        self._left = 0  # contents announced and not written yet
        self._references_end = c.FIRST_PAYLOAD
        self._finished = False
        if write_payload is None:
            if prelude is not None:
                raise ValueError("only an archive with a payload stream has a prelude")
            return
        start = c.VERSION_ITEM.pack(c.FORMAT_VERSION, c.VERSION_ITEM.size, 2)
        if prelude is not None:
            if len(prelude) > c.MAX_PRELUDE:
                raise EncodeError("prelude", expected=f"at most {c.MAX_PRELUDE} bytes", got=len(prelude))
            start += _item(c.PRELUDE, prelude)
        self._emit(start)
        write_payload(c.HEADER.pack(c.PAYLOAD_START_MARKER, c.HEADER_SIZE))
        self.payload_position = c.FIRST_PAYLOAD

    # -- directories ---------------------------------------------------------------------------------------------------

    def start_root(self, attributes: Metadata | bytes) -> None:
        """The root directory; everything else goes between this and its ``end_directory``.

        ``attributes``: its metadata, or what ``encode_attributes`` made of them.
        """
        if self._children is not None or self._finished:
            raise ValueError("the root was started before")
        self._emit(attributes if isinstance(attributes, bytes) else _entry(None, attributes, (c.DIRECTORY,)))
        self._children = array("Q")

    def start_directory(self, name: bytes, attributes: Metadata | bytes) -> int:
        """A directory in the open one; what follows is in it. Returns the position of its FILENAME item."""
        children = self._open_directory()
        if isinstance(attributes, bytes):
            item = _filename(name) + attributes
        else:
            item = _entry(name, attributes, (c.DIRECTORY,))
        start = self.position
        self._emit(item)
        self._outer.append((children, self._directory_start, siphash(HASH_KEY, name), start))
        self._children = array("Q")
        self._directory_start = start + c.HEADER_SIZE + len(name) + 1
        return start

    def end_directory(self, table: bytes | None = None) -> None:
        """Close the innermost open directory, at the end the root. ``table``: its GOODBYE item, where it is known."""
        children = self._open_directory()
        self._emit(table if table is not None else build(children, self.position, self._directory_start))
        if not self._outer:
            self._children = None
            self._finished = True
            return
        self._children, self._directory_start, name, start = self._outer.pop()
        self._children.extend((name, start, self.position - start))

    # -- version 2: contents, then the entry ---------------------------------------------------------------------------

    def start_payload(self, size: int) -> int:
        """Announce ``size`` bytes of contents in the payload stream. Returns the reference for ``add_file``."""
        write = self._split_stream()
        if self._left:
            raise ValueError(f"the payload before lacks {self._left} bytes")
        _check_size(size)
        offset = self.payload_position
        write(c.HEADER.pack(c.PAYLOAD, c.HEADER_SIZE + size))
        self.payload_position = offset + c.HEADER_SIZE
        self._left = size
        return offset

    def advance(self, length: int) -> None:
        """The caller has written ``length`` bytes of the announced contents to the payload stream (1: the archive)."""
        if not 0 <= length <= self._left:
            raise ValueError(f"{length} bytes of contents written, {self._left} are left of the announced size")
        self._left -= length
        if self._write_payload is None:
            self.position += length
        else:
            self.payload_position += length

    def abandon_payload(self) -> None:
        """Give up the contents started last: no entry will refer to them, what was written stays as padding."""
        self._split_stream()
        self._left = 0

    def add_file(self, name: bytes, metadata: Metadata, size: int, payload_offset: int) -> int:
        """A regular file whose contents were written at ``payload_offset`` in this run.

        Returns the position of its FILENAME item (for hard links). ``payload_offset`` must not lie before the end of
        the contents referred to last.
        """
        if payload_offset + c.HEADER_SIZE + size > self.payload_position:
            raise ValueError("the file's contents are not complete")
        return self._refer(name, metadata, size, payload_offset, size)

    def add_plain_files(self, files: Sequence[PlainFile]) -> list[bytes]:
        """Regular files without further attributes, whose PAYLOAD items (header, contents) the caller puts into the
        payload stream one behind the other. Returns the items of each.

        Does what ``start_payload``, ``advance`` and ``add_file`` do: the hot path of a first backup.
        """
        children = self._open_directory()
        self._split_stream()
        start, offset = self.position, self.payload_position
        if offset < self._references_end:
            raise ValueError(f"payload reference {offset} lies before {self._references_end}")
        items: list[bytes] = []
        rows: list[int] = []
        for name, stat, size in files:
            if stat[0] >> 12 != c.REGULAR or stat[5] >= 10**9 or not c.valid_name(name) or size > c.MAX_FILE_SIZE:
                _entry(name, Metadata(Stat(*stat)), (c.REGULAR,))  # says what is wrong
                _check_size(size)
            head, pack = _packer_of_file(len(name))
            try:
                item = pack(head, name, _ENTRY_HEAD, *stat, _REF_HEAD, offset, size)
            except struct.error as error:
                raise _out_of_range(Metadata(Stat(*stat))) from error
            items.append(item)
            length = len(item)
            rows += (siphash(HASH_KEY, name), start, length + size)
            start += length
            offset += c.HEADER_SIZE + size
        self._write(b"".join(items))
        if items:
            self.last = items[-1]
        children.extend(rows)
        self.position = start
        self.payload_position = self._references_end = offset
        return items

    def add_reference(self, name: bytes, metadata: Metadata, size: int, payload_offset: int) -> int:
        """Like ``add_file`` for contents inside reused chunks, which may be injected later but before ``finish``.

        Its size in the goodbye table is without the contents.
        """
        return self._refer(name, metadata, size, payload_offset, 0)

    def add_encoded(
        self, items: Buffer, names: Sequence[bytes], lengths: Sequence[int], references: tuple[int, int] | None
    ) -> int:
        """Entries that were encoded before, in this or an earlier archive; no directories, no hard links.

        ``names``, and ``lengths`` in ``items``: none when the directory will be closed with its table.
        ``references``: where the contents that the files among them refer to begin and end; they may be injected later
        but before ``finish``. Returns the position of the first entry.
        """
        children = self._open_directory()
        self._refer_to(references)
        start = at = self.position
        for name, length in zip(names, lengths, strict=True):
            children.extend((siphash(HASH_KEY, name), at, length))
            at += length
        self._emit(items)
        return start

    def add_encoded_files(
        self, items: Buffer, names: Sequence[bytes], lengths: Sequence[int], sizes: Sequence[int]
    ) -> None:
        """Regular files that were encoded before; as for ``add_plain_files`` the caller puts their PAYLOAD items into
        the payload stream, contents of these ``sizes``, and has made ``items`` refer to that."""
        children = self._open_directory()
        self._split_stream()
        end = self.payload_position + sum(sizes) + c.HEADER_SIZE * len(sizes)
        self._refer_to((self.payload_position, end))
        at = self.position
        for name, length, size in zip(names, lengths, sizes, strict=True):
            children.extend((siphash(HASH_KEY, name), at, length + size))
            at += length
        self._emit(items)
        self.payload_position = end

    def add_directory(
        self, name: bytes, attributes: bytes, items: Buffer, table: bytes, references: tuple[int, int] | None
    ) -> None:
        """A whole directory that was encoded before: ``items`` of its entries and GOODBYE item. ``references`` and what
        may be in it as for ``add_encoded``."""
        children = self._open_directory()
        data = b"".join((_filename(name), attributes, items, table))
        self._refer_to(references)
        start = self.position
        self._emit(data)
        children.extend((siphash(HASH_KEY, name), start, len(data)))

    def _refer_to(self, references: tuple[int, int] | None) -> None:
        if references is not None:
            first, end = references
            if first < self._references_end or self._write_payload is None:
                raise ValueError(f"payload reference {first} lies before {self._references_end}")
            self._references_end = end

    @property
    def references_end(self) -> int:
        """Where the contents end that were referred to last: no further reference may lie before."""
        return self._references_end

    def inject(self, size: int) -> None:
        """``size`` bytes of reused chunks are put into the payload stream here, by the caller."""
        self._split_stream()
        if self._left or size < 0:
            raise ValueError("chunks cannot be injected into a payload")
        self.payload_position += size

    def _refer(self, name: bytes, metadata: Metadata, size: int, offset: int, counted: int) -> int:
        """The hot path: what several items of a usual file need is packed in one go."""
        children = self._open_directory()
        if offset < self._references_end or self._write_payload is None:
            raise ValueError(f"payload reference {offset} lies before {self._references_end}")
        _check_size(size)
        stat, xattrs, acl, fcaps, quota = metadata
        plain = not xattrs and acl is NO_ACL and fcaps is None and quota is None
        if plain and stat[0] >> 12 == c.REGULAR and stat[5] < 10**9 and c.valid_name(name):
            length = len(name)
            try:
                head, pack = _packer_of_file(length)
                item = pack(head, name, _ENTRY_HEAD, *stat, _REF_HEAD, offset, size)
            except struct.error as error:
                raise _out_of_range(metadata) from error
        else:
            item = _entry(name, metadata, (c.REGULAR,)) + c.FOUR.pack(c.PAYLOAD_REF, c.REF_SIZE, offset, size)
        start = self.position
        self._write(item)
        self.position = end = start + len(item)
        self.last = item
        children.extend((siphash(HASH_KEY, name), start, end - start + counted))
        self._references_end = offset + c.HEADER_SIZE + size
        return start

    def _split_stream(self) -> _Write:
        if self._write_payload is None:
            raise ValueError("a version 1 archive has no payload stream")
        return self._write_payload

    # -- version 1: the entry, then contents ---------------------------------------------------------------------------

    def start_file(self, name: bytes, metadata: Metadata, size: int) -> int:
        """A regular file; ``size`` bytes of contents must follow in the archive stream, told by ``advance``.

        Returns the position of its FILENAME item.
        """
        if self._write_payload is not None:
            raise ValueError("in a version 2 archive the contents come first")
        _check_size(size)
        start = self._add(name, metadata, (c.REGULAR,), c.HEADER.pack(c.PAYLOAD, c.HEADER_SIZE + size), size)
        self._left = size
        return start

    # -- everything else -----------------------------------------------------------------------------------------------

    def add_symlink(self, name: bytes, metadata: Metadata, target: bytes) -> int:
        """Returns the position of the FILENAME item, like the others below."""
        if not 0 < len(target) <= c.MAX_NAME or 0 in target:
            raise EncodeError("target of a symlink", expected="1 to 4096 bytes without NUL", got=repr(target[:80]))
        return self._add(name, metadata, (c.LINK,), _item(c.SYMLINK, target + b"\0"))

    def add_device(self, name: bytes, metadata: Metadata, major: int, minor: int) -> int:
        """A character or block device."""
        if not 0 <= major < 2**64 or not 0 <= minor < 2**64:
            raise EncodeError("device number", got=f"{major}, {minor}")
        return self._add(name, metadata, (c.CHAR, c.BLOCK), _item(c.DEVICE, c.PAIR.pack(major, minor)))

    def add_special(self, name: bytes, metadata: Metadata) -> int:
        """A fifo or socket."""
        return self._add(name, metadata, (c.FIFO, c.SOCKET), b"")

    def add_hardlink(self, name: bytes, target_path: bytes, target_position: int) -> int:
        """Another name of the file ``target_path`` (relative to the root) whose FILENAME is at ``target_position``."""
        children = self._open_directory()
        start = self.position
        if not 0 <= target_position < start:
            raise ValueError(f"hard link at {start} to {target_position}: the target comes first")
        if not c.valid_link_path(target_path):
            raise EncodeError("target of a hard link", got=repr(target_path[:80]))
        self.last = encode_hardlink(name, target_path, start - target_position)
        self._emit(self.last)
        children.extend((siphash(HASH_KEY, name), start, self.position - start))
        return start

    def finish(self) -> None:
        """The end, after the root was closed: writes the payload stream's tail marker."""
        if not self._finished or self._left:
            raise ValueError("the archive is not complete")
        if self._write_payload is None:
            return
        if self._references_end > self.payload_position:
            raise ValueError(f"contents end at {self._references_end}, the payload stream at {self.payload_position}")
        self._write_payload(c.HEADER.pack(c.PAYLOAD_TAIL_MARKER, c.HEADER_SIZE))
        self.payload_position += c.HEADER_SIZE

    def _add(self, name: bytes, metadata: Metadata, types: tuple[int, ...], body: bytes, contents: int = 0) -> int:
        children = self._open_directory()
        item = _entry(name, metadata, types) + body
        start = self.position
        self._emit(item)
        self.last = item
        children.extend((siphash(HASH_KEY, name), start, len(item) + contents))
        return start

    def _open_directory(self) -> array[int]:
        children = self._children
        if children is None:
            raise ValueError("no directory is open")
        if self._left:
            raise ValueError(f"the file before lacks {self._left} bytes of its contents")
        return children

    def _emit(self, data: Buffer) -> None:
        self._write(data)
        self.position += len(data)


def encode_attributes(metadata: Metadata) -> bytes:
    """ENTRY and attribute items. Raises EncodeError."""
    return _entry(None, metadata, (metadata.stat.mode >> 12,))


def encode_file(name: bytes, attributes: Metadata | bytes, offset: int, size: int) -> bytes:
    """All items of a regular file of version 2. Raises EncodeError."""
    if not isinstance(attributes, bytes):
        attributes = encode_attributes(attributes)
    return b"".join((_filename(name), attributes, c.FOUR.pack(c.PAYLOAD_REF, c.REF_SIZE, offset, size)))


def encode_entry(entry: Entry) -> bytes:
    """All items of an entry that was decoded, in version 2; contents apart. Raises EncodeError."""
    name, metadata = entry.name, entry.metadata
    if metadata is None:
        return encode_hardlink(name, entry.target, entry.link_offset)
    attributes = encode_attributes(metadata)
    if entry.kind == "file":
        return encode_file(name, attributes, entry.payload_offset or 0, entry.size)
    body = b""
    if entry.kind == "symlink":
        body = _item(c.SYMLINK, entry.target + b"\0")
    elif entry.kind in ("char", "block"):
        body = _item(c.DEVICE, c.PAIR.pack(entry.major, entry.minor))
    return b"".join((_filename(name), attributes, body))


def encode_hardlink(name: bytes, target_path: bytes, distance: int) -> bytes:
    """All items of a further name of a file. Raises EncodeError."""
    return _filename(name) + _item(c.HARDLINK, c.U64.pack(distance) + target_path + b"\0")


@cache
def _packer_of_file(length: int) -> tuple[bytes, Callable[..., bytes]]:
    """Header of FILENAME (a name of ``length`` bytes), and what packs that with ENTRY and PAYLOAD_REF."""
    return c.HEADER.pack(c.FILENAME, c.HEADER_SIZE + length + 1), struct.Struct(f"<16s{length}s17sQQIIqI20sQQ").pack


def _item(kind: int, content: bytes) -> bytes:
    return c.HEADER.pack(kind, c.HEADER_SIZE + len(content)) + content


def _filename(name: bytes) -> bytes:
    if not c.valid_name(name):
        raise EncodeError("file name", expected="1 to 4096 bytes, no slash or NUL, not . or ..", got=repr(name[:80]))
    return _item(c.FILENAME, name + b"\0")


def _check_size(size: int) -> None:
    if not 0 <= size <= c.MAX_FILE_SIZE:
        raise EncodeError("size of a file", expected=f"0 to {c.MAX_FILE_SIZE}", got=size)


def _out_of_range(metadata: Metadata) -> EncodeError:
    return EncodeError("a number of an entry's metadata does not fit its field", got=metadata)


def _entry(name: bytes | None, metadata: Metadata, types: tuple[int, ...]) -> bytes:
    """FILENAME (None: the root, which has none), ENTRY and attributes. The mode must have one of ``types``."""
    stat = metadata.stat
    if stat.mode >> 12 not in types:
        raise ValueError(f"mode {stat.mode:o} does not fit the kind of entry")
    if stat.mtime_nanos >= 10**9:
        raise EncodeError("nanoseconds of an entry", expected="below 10^9", got=stat.mtime_nanos)
    pieces = [] if name is None else [_filename(name)]
    try:
        pieces.append(c.ENTRY_ITEM.pack(c.ENTRY, c.ENTRY_SIZE, *stat, 0))
        attributes = _attributes(metadata)
    except struct.error as error:
        raise _out_of_range(metadata) from error
    if len(attributes) > c.MAX_ATTRIBUTES or sum(map(len, attributes)) > c.MAX_ATTRIBUTE_BYTES:
        raise EncodeError("too many attributes of one entry", got=len(attributes))
    return b"".join(pieces + attributes)


def _attributes(metadata: Metadata) -> list[bytes]:
    """The attribute items in the order of spec 5. struct.error: a number does not fit."""
    _, xattrs, acl, fcaps, quota = metadata
    items = []
    for name, value in xattrs:
        if not name or 0 in name or len(name) + 1 + len(value) > c.MAX_XATTR:
            raise EncodeError(
                "extended attribute", expected=f"name and value of {c.MAX_XATTR - 1} bytes", got=repr(name)
            )
        items.append(_item(c.XATTR, name + b"\0" + value))
    if acl is not NO_ACL:
        items += _acl_items(acl)
    if fcaps is not None:
        if len(fcaps) > c.MAX_XATTR:
            raise EncodeError("file capabilities", expected=f"at most {c.MAX_XATTR} bytes", got=len(fcaps))
        items.append(_item(c.FCAPS, fcaps))
    if quota is not None:
        items.append(_item(c.QUOTA_PROJID, c.U64.pack(quota)))
    return items


def _acl_items(acl: Acl) -> list[bytes]:
    items = [_item(c.ACL_USER, c.PAIR.pack(*pair)) for pair in acl.users]
    items += [_item(c.ACL_GROUP, c.PAIR.pack(*pair)) for pair in acl.groups]
    if acl.group_obj is not None:
        items.append(_item(c.ACL_GROUP_OBJ, c.U64.pack(acl.group_obj)))
    if acl.default is not None:
        items.append(_item(c.ACL_DEFAULT, c.FOUR.pack(*acl.default)))
    items += [_item(c.ACL_DEFAULT_USER, c.PAIR.pack(*pair)) for pair in acl.default_users]
    items += [_item(c.ACL_DEFAULT_GROUP, c.PAIR.pack(*pair)) for pair in acl.default_groups]
    return items
