"""The rig's own parts, without the machine: the archive that becomes its root, modules in order, reports."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from bench.tape_rig import __main__ as rig
from bench.tape_rig import image, machine, packages
from bench.tape_rig.packages import RigError


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> mode and data, of a cpio archive."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        data = (at + 110 + fields[11] + 3) // 4 * 4
        at = (data + fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(archive)
            return found
        found[name] = fields[1], archive[data : data + fields[6]]


def test_the_root_is_an_archive_that_the_kernel_unpacks(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/odd").write_bytes(b"12345")
    (root / "a/empty").write_bytes(b"")
    (root / "init").symlink_to("a/b/odd")
    (root / "a/b/odd").chmod(0o755)
    image.write(root, tmp_path / "image")
    found = entries((tmp_path / "image").read_bytes())
    assert list(found) == ["a", "init", "a/b", "a/empty", "a/b/odd"]
    assert stat.S_ISDIR(found["a"][0]) and found["a/empty"][1] == b""
    assert (stat.S_ISLNK(found["init"][0]), found["init"][1]) == (True, b"a/b/odd")
    assert (found["a/b/odd"][0], found["a/b/odd"][1]) == (stat.S_IFREG | 0o755, b"12345")


def test_modules_are_loaded_after_those_that_they_need(tmp_path: Path) -> None:
    place = tmp_path / "boot/lib/modules/6.1/kernel/drivers"
    place.mkdir(parents=True)
    for name, needs in (("st", "scsi_mod"), ("scsi_mod", "scsi-common"), ("scsi-common", ""), ("sg", "scsi_mod,no")):
        (place / f"{name}.ko").write_bytes(b"\0license=GPL\0depends=" + needs.encode() + b"\0")
    (tmp_path / "root").mkdir()
    packages._copy_modules(tmp_path / "boot", tmp_path / "root")
    names = sorted(path.name for path in (tmp_path / "root/modules").iterdir())
    assert names == ["00-scsi_common.ko", "01-scsi_mod.ko", "02-st.ko", "03-sg.ko"]


def _program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_reports_come_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = tmp_path / "reports"
    _program(tmp_path, monkeypatch, f'echo noise > {reports}; echo \'{{"check": "x"}}\' >> {reports}')
    assert list(machine.run(Path("k"), Path("i"), tmp_path, seconds=60)) == [{"check": "x"}]


def test_a_machine_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, monkeypatch, "exec sleep 100")
    with pytest.raises(RigError, match="did not end"):
        list(machine.run(Path("k"), Path("i"), tmp_path, seconds=0.1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="qemu-system-x86"):
        list(machine.run(Path("k"), Path("i"), tmp_path, seconds=0.1))


@pytest.mark.parametrize(("problems", "code"), [([None], 0), ([None, "no"], 1), ([], 1)])
def test_the_exit_code_says_whether_all_went_well(
    problems: list[str | None],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports = [{"check": "it", "problem": problem, "seconds": 1} for problem in problems]
    monkeypatch.setattr(packages, "fetch", lambda work: [])
    monkeypatch.setattr(packages, "unpack", lambda debs, work: (work, work))
    monkeypatch.setattr(image, "add_project", lambda root: None)
    monkeypatch.setattr(image, "write", lambda root, file: None)
    monkeypatch.setattr(machine, "run", lambda *_, **__: iter(reports))
    (tmp_path / "console").write_text("")
    assert rig.main(["--work", str(tmp_path), "--json", str(tmp_path / "out.json")]) == code
    assert json.loads((tmp_path / "out.json").read_text())["items"] == reports
    assert (
        f"{len(problems)} checks, {sum(problem is not None for problem in problems)} failed" in capsys.readouterr().out
    )
