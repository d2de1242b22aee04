"""What a backup is asked to save: ``DIR``, ``NAME.pxar:DIR`` (spec blob-index-crypto.md 9; DESIGN.md 5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from archiver.errors import UsageError
from formats.naming import MAX_NAME

_NAME = re.compile(r"([A-Za-z0-9_-]+)\.(pxar)")
_LONGEST_NAME = MAX_NAME - len(".mpxar.didx")
_NOT_IN_A_NAME = re.compile(rb"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """``name`` without extension; ``path`` of the source directory."""

    name: str
    path: str


def parse_specification(text: str) -> ArchiveSpec:
    """Raises UsageError when it is neither a directory nor NAME.pxar:DIR."""
    name, colon, path = text.partition(":")
    found = _NAME.fullmatch(name)
    if colon and found:
        return _checked(ArchiveSpec(found[1], path), text)
    if colon and not os.path.lexists(text):
        raise UsageError(f"{text!r} is neither a directory nor NAME.pxar:DIRECTORY", hint="for example home.pxar:/home")
    return _checked(ArchiveSpec(default_name(text), text), text)


def default_name(path: str) -> str:
    """The directory's last part with unusual bytes as ``_``; ``root`` for ``/``."""
    last = os.path.basename(os.path.abspath(path))
    return _NOT_IN_A_NAME.sub(b"_", os.fsencode(last)).decode() or "root"


def parse_specifications(texts: Iterable[str]) -> list[ArchiveSpec]:
    """All sources of a run; UsageError when two would have the same archive name."""
    specs = [parse_specification(text) for text in texts]
    seen: dict[str, ArchiveSpec] = {}
    for spec in specs:
        other = seen.setdefault(spec.name, spec)
        if other is not spec:
            raise UsageError(
                f"{other.path} and {spec.path} would both be {spec.name}.pxar",
                hint=f"give one of them a name: other.pxar:{spec.path}",
            )
    return specs


def _checked(spec: ArchiveSpec, text: str) -> ArchiveSpec:
    if len(spec.name) > _LONGEST_NAME:
        raise UsageError(
            f"the archive name {spec.name} is too long", hint=f"give it another one: short.pxar:{spec.path}"
        )
    if not spec.path:
        raise UsageError(f"{text!r} names no directory")
    if not os.path.isdir(spec.path):
        reason = "is not a directory" if os.path.lexists(spec.path) else "does not exist"
        raise UsageError(f"the source {spec.path} {reason}")
    return spec
