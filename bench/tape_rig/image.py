"""The machine's root file system: a cpio archive (newc) that the kernel unpacks into memory.

header of an entry: "070701", then 13 fields of 8 hex digits: inode, mode, uid, gid, links, mtime, size of the data,
4 device numbers, size of the name with its NUL, 0; name and data are each padded to 4 bytes
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from bench.tape_rig.packages import RigError

_PROJECT = Path(__file__).resolve().parents[2]
_GUEST = Path(__file__).resolve().parent / "guest"
_END = "TRAILER!!!"


def add_project(root: Path) -> None:
    """The program as it is here, what it needs from this Python's site-packages, and what runs in the machine."""
    for name in ("archiver", "formats"):
        shutil.copytree(_PROJECT / name, root / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    bench = root / "project" / "bench"
    shutil.copytree(_GUEST, bench / "tape_rig" / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "tape_rig/__init__.py"):
        shutil.copy(_PROJECT / "bench" / name, bench / name)
    target = root / "site-packages"
    for distribution in _needed("archiver"):
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or "tests" in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / file)
    _compile(root)
    init = root / "init"
    shutil.copy(_GUEST / "init", init)
    init.chmod(0o755)


def _compile(root: Path) -> None:
    """Bytecode, since compiling is slow in there; it holds whatever the times of the files are."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = root / "usr/lib" / version
    if not library.is_dir():
        raise RigError(f"Debian's python3 is another one than this {version}: run this with Debian's")
    for directory in (library, root / "project", root / "site-packages"):
        compileall.compile_dir(
            directory,
            quiet=2,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def _needed(name: str) -> list[importlib.metadata.Distribution]:
    """The distributions that ``name`` requires, without optional ones."""
    found: dict[str, importlib.metadata.Distribution] = {}

    def add(requiring: str) -> None:
        for requirement in importlib.metadata.requires(requiring) or ():
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match is None or ";" in requirement or match[0].lower() in found:
                continue
            try:
                found[match[0].lower()] = importlib.metadata.distribution(match[0])
            except importlib.metadata.PackageNotFoundError as error:
                raise RigError(f"this Python has no {match[0]}") from error
            add(match[0])

    add(name)
    if "cryptography" in found and "cffi" not in found:  # asked for with a condition on the interpreter
        for extra in ("cffi", "pycparser"):
            found[extra] = importlib.metadata.distribution(extra)
    return list(found.values())


def write(root: Path, image: Path) -> None:
    with open(image, "wb") as out:
        number = 1
        for directory, names, files in os.walk(root):
            names.sort()
            for name in sorted([*names, *files]):
                path = Path(directory) / name
                _entry(out, number, path, str(path.relative_to(root)))
                number += 1
        _header(out, number, 0, 0, _END)


def _entry(out: BinaryIO, number: int, path: Path, name: str) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        data = os.fsencode(os.readlink(path))
    elif stat.S_ISREG(mode):
        data = path.read_bytes()
    elif stat.S_ISDIR(mode):
        data = b""
    else:
        return
    _header(out, number, mode, len(data), name)
    out.write(data + bytes(-len(data) % 4))


def _header(out: BinaryIO, number: int, mode: int, size: int, name: str) -> None:
    encoded = os.fsencode(name) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out.write(head + bytes(-len(head) % 4))
