"""What a backup is asked to save: ``DIR``, ``NAME.pxar:DIR``, ``NAME.img:FILE``, ``NAME.conf:FILE``, ``NAME.log:FILE``
(spec blob-index-crypto.md 9; DESIGN.md 5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from archiver.errors import UsageError
from archiver.source.image import STANDARD_INPUT, kind_of
from archiver.store.layout import CLIENT_LOG
from formats.naming import MAX_NAME, server_name

Kind = Literal["tree", "image", "blob", "pxar file"]

_NAME = re.compile(r"([A-Za-z0-9_-]+)\.(pxar|img|conf|log)")
_KINDS: dict[str, Kind] = {"pxar": "tree", "img": "image", "conf": "blob", "log": "blob"}
_LONGEST_NAME = MAX_NAME - len(".mpxar.didx")
_NOT_IN_A_NAME = re.compile(rb"[^A-Za-z0-9_-]")
_FORMS = "home.pxar:/home, disk.img:/dev/sdb, disk.img:- for standard input, or fstab.conf:/etc/fstab"


class ArchiveSpec(NamedTuple):
    """``name`` without extension; ``path`` of the source, ``-`` for standard input. ``command``: what it prints is read
    instead of that. ``made``: the source is an archive already, ``payload`` the other half of one that is split."""

    name: str
    path: str
    extension: str = "pxar"
    command: str | None = None
    made: bool = False
    payload: str | None = None

    @property
    def archive(self) -> str:
        """As the user names it: ``x.pxar``, ``x.img``, ``x.conf``."""
        return f"{self.name}.{self.extension}"

    @property
    def kind(self) -> Kind:
        return "pxar file" if self.made else _KINDS[self.extension]


def pxar_file(path: str, payload: str | None, name: str | None) -> ArchiveSpec:
    """A pxar file that was made elsewhere, or a pair. Without ``name`` it is named like the file; without ``payload``
    an ``x.mpxar`` has its contents in ``x.ppxar`` beside it. Raises UsageError."""
    base, extension = os.path.splitext(path)
    if payload is None and extension == ".mpxar" and os.path.lexists(f"{base}.ppxar"):
        payload = f"{base}.ppxar"
    for each in (path, payload):
        if each is not None and not os.path.isfile(each):
            raise UsageError(f"{each} is not a file", hint="archiver backup saves directories")
    found = _NAME.fullmatch(f"{default_name(base) if name is None else name.removesuffix('.pxar')}.pxar")
    if found is None or len(found[1]) > _LONGEST_NAME:
        raise UsageError(f"{name!r} is no name of an archive", hint="letters, digits, _ and -, for example home")
    return ArchiveSpec(found[1], path, made=True, payload=payload)


def parse_specification(text: str) -> ArchiveSpec:
    """Raises UsageError when it has none of the forms above, or its source is not what that form needs."""
    spec = form_of(text)
    check_source(spec)
    return spec


def form_of(text: str) -> ArchiveSpec:
    """What is meant, whether or not there is such a source. Raises UsageError when it has none of the forms above."""
    name, colon, path = text.partition(":")
    found = _NAME.fullmatch(name)
    if not (colon and found) and colon and not os.path.lexists(text):
        raise UsageError(f"{text!r} is neither a directory nor NAME.pxar:DIRECTORY", hint=f"for example {_FORMS}")
    spec = ArchiveSpec(found[1], path, found[2]) if colon and found else ArchiveSpec(default_name(text), text)
    if len(spec.name) > _LONGEST_NAME:
        raise UsageError(
            f"the archive name {spec.name} is too long",
            hint=f"give it another one: short.{spec.extension}:{spec.path}",
        )
    if not spec.path:
        raise UsageError(f"{text!r} names no {'directory' if spec.kind == 'tree' else 'file'}")
    if spec.kind != "tree" and server_name(spec.archive) == CLIENT_LOG:
        raise UsageError(f"{CLIENT_LOG} is what a backup itself has to tell", hint="choose another name")
    return spec


def default_name(path: str) -> str:
    """The directory's last part with unusual bytes as ``_``; ``root`` for ``/``."""
    last = os.path.basename(os.path.abspath(path))
    return _NOT_IN_A_NAME.sub(b"_", os.fsencode(last)).decode() or "root"


def parse_specifications(texts: Iterable[str], command: str | None = None) -> list[ArchiveSpec]:
    """All sources of a run; UsageError when two would have the same archive name. ``command``: its output takes the
    place of standard input."""
    specs = [parse_specification(text) for text in texts]
    check_names(specs)
    streams = [spec for spec in specs if spec.path == STANDARD_INPUT]
    if len(streams) > 1:
        raise UsageError(f"standard input cannot be both {streams[0].archive} and {streams[1].archive}")
    if command is None:
        return specs
    if not streams:
        raise UsageError("--stdin-from-command needs an image that is read from it", hint="for example database.img:-")
    if not command.strip() or "\0" in command:
        raise UsageError("--stdin-from-command: there is no command")
    return [spec._replace(command=command) if spec is streams[0] else spec for spec in specs]


def check_names(specs: Sequence[ArchiveSpec]) -> None:
    """Raises UsageError when two would be the same archive."""
    seen: dict[str, ArchiveSpec] = {}
    for spec in specs:
        other = seen.setdefault(spec.archive, spec)
        if other is not spec:
            raise UsageError(
                f"{other.path} and {spec.path} would both be {spec.archive}",
                hint=f"give one of them a name: other.{spec.extension}:{spec.path}",
            )


def check_source(spec: ArchiveSpec) -> None:
    """Raises UsageError when the source is not there, or is not what can be saved so."""
    if spec.kind == "tree":
        if not os.path.isdir(spec.path):
            reason = "is not a directory" if os.path.lexists(spec.path) else "does not exist"
            raise UsageError(f"the source {spec.path} {reason}", hint=_hint(spec.path))
    elif spec.kind != "image" or spec.path != STANDARD_INPUT:
        _check_file(spec)


def _hint(path: str) -> str | None:
    """How to save what is no directory."""
    if not os.path.isfile(path):
        return None
    return f"save it as {default_name(path)}.img:{path}, a small file as {default_name(path)}.conf:{path}"


def _check_file(spec: ArchiveSpec) -> None:
    """The source of an image or blob is there, and of a kind that can be read so."""
    try:
        kind = kind_of(spec.path)
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UsageError(f"the source {spec.path} {reason}") from error
    if kind == "directory":
        raise UsageError(f"the source {spec.path} is a directory", hint=f"save it as {spec.name}.pxar:{spec.path}")
    usable = ("file", "device", "fifo") if spec.kind == "image" else ("file",)
    if kind not in usable:
        raise UsageError(f"the source {spec.path} is a {kind}, which cannot be saved as {spec.archive}")
