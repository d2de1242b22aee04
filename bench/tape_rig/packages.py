"""Debian's packages for the emulated machine: fetched with all they need, unpacked, nothing is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = (
    *("busybox-static", "python3", "libstdc++6"),  # numpy's wheel needs the library
    *("tgt", "open-iscsi", "mtx", "dosfstools", "exfatprogs"),
)
MODULES = (
    *("iscsi_tcp", "crc32c_generic", "sd_mod", "st", "sg", "ch"),
    *("loop", "vfat", "exfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
)
_UNWANTED = (
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/bin/perl",
    "lib/udev",
    "usr/lib/udev",
    "var/lib/dpkg",
)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class RigError(Exception):
    """The machine cannot be built or run; one sentence says why."""


def fetch(work: Path) -> list[Path]:
    """All packages that a machine with nothing needs for PROGRAMS, and the kernel's; those in ``work`` are kept."""
    debs, fetched = work / "debs", work / "fetched"
    wanted = " ".join(PROGRAMS)
    if not fetched.exists() or fetched.read_text() != wanted:
        (debs / "partial").mkdir(parents=True, exist_ok=True)
        nothing = work / "no-packages"
        nothing.write_bytes(b"")
        options = [f"Dir::State::status={nothing}", f"Dir::Cache::archives={debs}", "Debug::NoLocking=1"]
        command = ["apt-get", "-y", "-q", "--no-install-recommends", "--download-only", "install", *PROGRAMS]
        _run([command[0], *(word for option in options for word in ("-o", option)), *command[1:]], work)
        _run(["apt-get", "-q", "download", _kernel_package()], debs)
        fetched.write_text(wanted)
    return sorted(debs.glob("*.deb"))


def _kernel_package() -> str:
    said = _run(["apt-cache", "depends", "--important", "linux-image-amd64"], Path("/"))
    names = re.findall(r"Depends: (linux-image-[0-9][^\s]*)", said)
    if not names:
        raise RigError("apt knows no linux-image-amd64: run apt-get update")
    return str(names[0])


def unpack(debs: list[Path], work: Path) -> tuple[Path, Path]:
    """The root directory for the machine, and its kernel."""
    root, boot = work / "root", work / "kernel"
    for directory in (root, boot):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    for deb in debs:
        _run(["dpkg-deb", "-x", str(deb), str(boot if deb.name.startswith("linux-image-") else root)], work)
    for name in _UNWANTED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    _copy_modules(boot, root)
    kernels = list((boot / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise RigError(f"{len(kernels)} kernels are in {boot}")
    return root, kernels[0]


def _copy_modules(boot: Path, root: Path) -> None:
    """MODULES and what they depend on, numbered in the order in which they are to be loaded."""
    files = {path.stem.replace("-", "_"): path for path in boot.glob("lib/modules/*/kernel/**/*.ko")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in files:  # what is not there is part of the kernel itself
            return
        match = _DEPENDS.search(files[name].read_bytes())
        for needed in match[1].decode().split(",") if match else ():
            if needed:
                add(needed.replace("-", "_"))
        order.append(name)

    for name in MODULES:
        add(name)
    target = root / "modules"
    target.mkdir()
    for number, name in enumerate(order):
        shutil.copy(files[name], target / f"{number:02}-{name}.ko")


def _run(command: list[str], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RigError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise RigError(f"{' '.join(command[:3])} ... failed: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")
    return done.stdout
