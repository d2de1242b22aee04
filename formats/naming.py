"""How groups, snapshots, namespaces and archive files are named (spec blob-index-crypto.md 9; datastore.md 2).

    id, name of a namespace     [A-Za-z0-9_][A-Za-z0-9._-]*      (a namespace component: at most 32 characters)
    snapshot time               YYYY-MM-DDTHH:MM:SSZ, UTC, 20 characters, not before 1970-01-01T00:00:01Z
    owner of a group            USER@REALM or USER@REALM!TOKEN, 3 to 64 characters
    archive file                the same characters as an id, then .didx (dynamic index), .fidx (fixed index) or .blob

A user may leave the last extension away: it follows from the one before (x.pxar is the file x.pxar.didx).
Every name is a directory entry, so 255 bytes is the limit where the format has none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from formats.errors import FormatError

BACKUP_TYPES = ("ct", "host", "vm")  # in the order in which they are listed
BACKUP_ID_RE = re.compile(r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\Z")

MAX_NAME = 255
MAX_NAMESPACE_COMPONENT = 32
_MIN_MEDIA_NAME, _MAX_MEDIA_NAME = 2, 32
MAX_NAMESPACE_DEPTH = 7  # so a namespace has at most 230 characters; the format's own limit of 256 never binds
MAX_OWNER = 64
MAX_TIME = 253402300799  # 9999-12-31T23:59:59Z

FileKind = Literal["dynamic", "fixed", "blob"]

_OWNER_RE = re.compile(r"\A[^\s/:]+@[A-Za-z0-9_][A-Za-z0-9._-]*(![A-Za-z0-9_][A-Za-z0-9._-]*)?\Z")
_TIME_RE = re.compile(r"\A([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z\Z")
_KINDS: dict[str, FileKind] = {"didx": "dynamic", "fidx": "fixed", "blob": "blob"}
_EXTENSIONS = {
    "pxar": "didx",
    "mpxar": "didx",
    "ppxar": "didx",
    "pcat1": "didx",
    "img": "fidx",
    "conf": "blob",
    "json": "blob",
    "key": "blob",
    "log": "blob",
}


def check_backup_type(text: str) -> None:
    """Raises FormatError unless it is one of BACKUP_TYPES."""
    if text not in BACKUP_TYPES:
        raise FormatError("backup type", expected=" or ".join(BACKUP_TYPES), got=_shown(text))


def check_backup_id(text: str) -> None:
    """Raises FormatError unless it can be the id of a backup group."""
    _check_name("backup id", text, MAX_NAME)


def check_backup_time(epoch: int) -> None:
    """Raises FormatError unless ``epoch`` (Unix seconds) can be the time of a snapshot: 1 to MAX_TIME."""
    if not 1 <= epoch <= MAX_TIME:
        raise FormatError("backup time", expected=f"1 to {MAX_TIME} seconds", got=_shown(epoch))


def check_namespace(text: str) -> None:
    """Raises FormatError unless it is a namespace: ``a/b/c``, the empty string for the root."""
    if not text:
        return
    components = text.split("/", MAX_NAMESPACE_DEPTH)
    if len(components) > MAX_NAMESPACE_DEPTH:
        raise FormatError("namespace depth", expected=f"at most {MAX_NAMESPACE_DEPTH}", got=_shown(text))
    for component in components:
        _check_name("namespace", component, MAX_NAMESPACE_COMPONENT)


def check_owner(text: str) -> None:
    """Raises FormatError unless it can be the owner of a group: ``user@realm``, ``user@realm!token``."""
    if not 3 <= len(text) <= MAX_OWNER or not _OWNER_RE.match(text) or not text.isprintable():
        raise FormatError("owner", expected="USER@REALM or USER@REALM!TOKEN", got=_shown(text))


def check_file_name(name: str) -> None:
    """Raises FormatError unless it can be the full name of an archive file in a snapshot."""
    _check_name("archive file name", name, MAX_NAME)
    file_kind(name)


def file_kind(name: str) -> FileKind:
    """What an archive file is, from its last extension; FormatError for any other extension."""
    stem, _, extension = name.rpartition(".")
    if not stem or extension not in _KINDS:
        raise FormatError("archive file name", expected="one ending in .didx, .fidx or .blob", got=_shown(name))
    return _KINDS[extension]


def server_name(name: str) -> str:
    """The file name of the archive a user calls ``name``: ``x.pxar`` -> ``x.pxar.didx``; full names stay.

    FormatError for an extension without a known file kind, or a name with other characters.
    """
    _check_name("archive name", name, MAX_NAME)
    stem, _, extension = name.rpartition(".")
    if stem and extension in _KINDS:
        return name
    if not stem or extension not in _EXTENSIONS:
        known = ", ".join(f".{extension}" for extension in _EXTENSIONS)
        raise FormatError("archive name", expected=f"one of the extensions {known}", got=_shown(name))
    full = f"{name}.{_EXTENSIONS[extension]}"
    _check_name("archive name", full, MAX_NAME)
    return full


@lru_cache(maxsize=1024)
def format_time(epoch: int) -> str:
    """Unix seconds -> ``2023-11-14T22:13:20Z``; FormatError outside 1..MAX_TIME."""
    check_backup_time(epoch)
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=1024)
def parse_time(text: str) -> int:
    """``2023-11-14T22:13:20Z`` -> Unix seconds, the exact inverse of format_time.

    FormatError for everything else, days that do not exist and leap seconds included: such a time would be
    formatted as another directory name.
    """
    match = _TIME_RE.match(text)
    if match is None:
        raise FormatError("snapshot time", expected="YYYY-MM-DDTHH:MM:SSZ", got=_shown(text))
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        epoch = int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError as error:
        raise FormatError("snapshot time", expected="an existing date and time", got=_shown(text)) from error
    check_backup_time(epoch)
    return epoch


def check_media_name(what: str, text: str) -> None:
    """Raises FormatError unless it can be the label text of a medium or the name of a pool (spec tape.md 2.5)."""
    _check_name(what, text, _MAX_MEDIA_NAME)
    if len(text) < _MIN_MEDIA_NAME:
        raise FormatError(what, expected=f"at least {_MIN_MEDIA_NAME} characters", got=_shown(text))


def _check_name(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise FormatError(what, expected=f"at most {limit} characters", got=f"{len(text)}")
    if not BACKUP_ID_RE.match(text):
        raise FormatError(what, expected="letters, digits, '_', '.' and '-', first no '.' or '-'", got=_shown(text))


def _shown(value: object) -> str:
    """For messages: quoted, control characters escaped, of bounded length."""
    return ascii(value)[:80]
