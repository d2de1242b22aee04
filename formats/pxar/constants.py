"""Numbers of the pxar format (spec pxar.md 1, 2, 3, 7).

An archive is a flat sequence of items, all integers little-endian:

    offset  size  field
    0       8     type
    8       8     size of the item, these 16 bytes included
    16      ...   content

Content of the items (max: the largest length accepted; the fixed ones must have exactly that length):

    FORMAT_VERSION    u64 version                                         8
    PRELUDE           opaque bytes                                        16 MiB (our limit)
    ENTRY             u64 mode, u64 flags, u32 uid, u32 gid, i64 mtime seconds, u32 nanoseconds, u32 zero     40
    ENTRY_V1          u64 mode, u64 flags, u32 uid, u32 gid, u64 mtime in nanoseconds (read only)             32
    FILENAME          name, NUL                                           4097
    SYMLINK           target, NUL                                         4097
    HARDLINK          u64 distance back to the target's FILENAME, target path, NUL                            4105
    DEVICE            u64 major, u64 minor                                16
    XATTR             name, NUL, value                                    65791
    ACL_USER, ACL_GROUP, ACL_DEFAULT_USER, ACL_DEFAULT_GROUP   u64 id, u64 permissions                        16
    ACL_GROUP_OBJ     u64 permissions                                     8
    ACL_DEFAULT       u64 user_obj, group_obj, other, mask                32
    FCAPS             value of security.capability                        65791
    QUOTA_PROJID      u64 id                                              8
    PAYLOAD           contents of a file
    PAYLOAD_REF       u64 position of a PAYLOAD item in the payload stream, u64 size of its contents          16
    GOODBYE           see goodbye.py
    PAYLOAD_START_MARKER, PAYLOAD_TAIL_MARKER   empty, first and last item of the payload stream
"""

from __future__ import annotations

import struct

FORMAT_VERSION = 0x730F6C75DF16A40D
PRELUDE = 0xE309D79D9F7B771B
ENTRY = 0xD5956474E588ACEF
ENTRY_V1 = 0x11DA850A1C1CCEFF
FILENAME = 0x16701121063917B3
SYMLINK = 0x27F971E7DBF5DC5F
HARDLINK = 0x51269C8422BD7275
DEVICE = 0x9FC9E906586D5CE9
XATTR = 0x0DAB0229B57DCD03
ACL_USER = 0x2CE8540A457D55B8
ACL_GROUP = 0x136E3ECEB04C03AB
ACL_GROUP_OBJ = 0x10868031E9582876
ACL_DEFAULT = 0xBBBB13415A6896F5
ACL_DEFAULT_USER = 0xC89357B40532CD1F
ACL_DEFAULT_GROUP = 0xF90A8A5816038FFE
FCAPS = 0x2DA9DD9DB5F7FB67
QUOTA_PROJID = 0xE07540E82F7D1CBB
PAYLOAD = 0x28147A1B0B7C1A25
PAYLOAD_REF = 0x419D3D6BC4BA977E
GOODBYE = 0x2FEC4FA642D5731D
PAYLOAD_START_MARKER = 0x834C68C2194A4ED2
PAYLOAD_TAIL_MARKER = 0x6C72B78B984C81B5

ITEM_NAMES = {number: name for name, number in globals().items() if isinstance(number, int)}

HEADER_SIZE = 16
ENTRY_SIZE = 56  # of an ENTRY item
REF_SIZE = 32  # of a PAYLOAD_REF item
FIRST_PAYLOAD = HEADER_SIZE  # position of the first PAYLOAD: behind the start marker

MAX_NAME = 4096  # bytes of a file name, and of a link's target
MAX_XATTR = 255 + 65536  # name, NUL and value together; also of file capabilities
MAX_FILE_SIZE = 2**63 - 1 - HEADER_SIZE
# Limits of our own, beyond what Linux can make, so that one entry cannot take all memory.
MAX_PRELUDE = 16 << 20
MAX_ATTRIBUTES = 32768  # items of one entry: at most 9362 xattrs and two ACLs of 8191 entries fit the kernel's limits
MAX_ATTRIBUTE_BYTES = 32 << 20

# File type bits of a mode, shifted right by 12.
FIFO, CHAR, DIRECTORY, BLOCK, REGULAR, LINK, SOCKET = 1, 2, 4, 6, 8, 10, 12

HEADER = struct.Struct("<QQ")
STAT = struct.Struct("<QQIIqII")
STAT_V1 = struct.Struct("<QQIIQ")
ENTRY_ITEM = struct.Struct("<QQQQIIqII")
VERSION_ITEM = struct.Struct("<QQQ")
U64 = struct.Struct("<Q")
PAIR = struct.Struct("<QQ")
FOUR = struct.Struct("<QQQQ")


def item_name(number: int) -> str:
    """An item type for messages."""
    return ITEM_NAMES.get(number) or f"unknown item type {number:#018x}"


def valid_name(name: bytes) -> bool:
    """Whether ``name`` may stand in a directory: 1 to 4096 bytes, no slash, no NUL, neither ``.`` nor ``..``."""
    return 0 < len(name) <= MAX_NAME and b"/" not in name and b"\0" not in name and name != b"." and name != b".."


def valid_link_path(path: bytes) -> bool:
    """Whether ``path`` may be the target of a hard link: names joined by slashes, relative to the archive's root."""
    return 0 < len(path) <= MAX_NAME and all(valid_name(name) for name in path.split(b"/"))
