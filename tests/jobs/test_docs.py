"""What the pages in docs/ show is run as it stands there, on a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from archiver.cli.main import COMMANDS, cli
from archiver.cli.manual import every_command
from tests.cli.command import ROOT

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PASSPHRASE = "a passphrase of mine"


def blocks(page: str, start: str = "") -> list[str]:
    """The commands of a page, in their order."""
    found = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", PAGES[page], re.MULTILINE)
    texts = ["\n".join(line[4:] for line in text.splitlines()) for text in found]
    return [text for text in texts if start in text]


def block(page: str, start: str) -> str:
    (found,) = blocks(page, start)
    return found


class Home:
    """A person's machine: a home with files, a drive, and programs that take what they get."""

    def __init__(self, place: Path) -> None:
        self.place, self.drive = place, place / "drive"
        for name in ("Documents", "Pictures"):
            (place / "home" / name).mkdir(parents=True)
        (place / "home/Documents/letter.txt").write_text("Dear reader\n")
        (place / "home/Documents/draft.tmp").write_text("not kept")
        (place / "home/Pictures/sea.raw").write_bytes(os.urandom(10_000))
        (place / "bin").mkdir()
        self.drive.mkdir()
        self.program("archiver", f'PYTHONPATH={ROOT} exec {sys.executable} -m archiver "$@"')
        self.program("python3", f'exec {sys.executable} "$@"')
        for name in ("systemctl", "crontab", "notify-send"):
            self.program(name, f'echo {name} "$@" >> {place}/called; [ {name} != crontab ] || cat > {place}/table')
        self.variables: dict[str, str] = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"}

    def program(self, name: str, text: str) -> None:
        (self.place / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.place / "bin" / name).chmod(0o755)

    def run(self, script: str, codes: tuple[int, ...] = (0,)) -> str:
        script = script.replace("key create", "key create --kdf pbkdf2").replace(
            "seq 0 65535", "seq 0 99"
        )  # sooner done
        script = script.replace("/media/me/drive", str(self.drive)).replace(
            "host/laptop", f"host/{os.uname().nodename}"
        )
        environment = {"HOME": str(self.place / "home"), "PATH": f"{self.place}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.place,
            env=environment | {"ARCHIVER_RESERVE": "64K"} | self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode in codes, script + done.stdout + done.stderr
        return done.stdout + done.stderr

    def called(self) -> str:
        path = self.place / "called"
        return path.read_text() if path.exists() else ""


def state_of(place: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in place.rglob("*")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def nightly(home: Home, *, encrypted: bool) -> None:
    """What is written in nightly.md, up to the first run."""
    home.run(block("nightly.md", "archiver init"))
    if encrypted:
        home.variables["ARCHIVER_PASSWORD"] = PASSPHRASE
        home.run(block("nightly.md", "archiver key create"))
        del home.variables["ARCHIVER_PASSWORD"]
    profile = block("nightly.md", "[keep]")
    if encrypted:
        (key, passphrase) = re.findall(r"`(\[key\])` and `(passphrase-file = .*?)`", PAGES["nightly.md"])[0]
        profile = profile.replace("\nEND\n", f"\n{key}\n{passphrase}\nEND\n")
        (home.place / "home/.config/archiver/passphrase").write_text(PASSPHRASE + "\n")
    assert "is right" in home.run(profile)


@pytest.mark.parametrize("encrypted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nightly(home: Home, encrypted: bool) -> None:
    nightly(home, encrypted=encrypted)
    if encrypted:  # who looks is asked for it
        home.variables["ARCHIVER_PASSWORD_FILE"] = str(home.place / "home/.config/archiver/passphrase")
    output = home.run(block("nightly.md", "archiver job run home"))
    assert "Documents.pxar" in output and "Pictures.pxar" in output and "job home: good" in output
    home.run(block("nightly.md", "archiver job notify home"))
    assert "notify-send" in home.called()
    home.run(block("nightly.md", "archiver job install home"))
    assert "systemctl --user enable archiver-job-home.timer" in home.called() or (home.place / "table").read_text()
    home.run(block("nightly.md", "archiver job report"))
    assert "all is well" in (home.place / "home.html").read_text()
    assert "letter.txt" in home.run(block("nightly.md", "archiver restore"))
    assert [path.name for path in (home.place / "home/restored").iterdir()] == ["letter.txt"]
    home.run("archiver job uninstall home --scope user")


def test_tour_of_the_readme(home: Home) -> None:
    nightly(home, encrypted=False)
    found = re.findall(r"(?:^    archiver job .*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    (tour,) = ["\n".join(line[4:] for line in text.splitlines()) for text in found if "job install" in text]
    assert tour.count("\n") == 5 and "job home: good" in home.run(tour)
    assert "all is well" in (home.place / "home.html").read_text()


def test_drive(home: Home) -> None:
    nightly(home, encrypted=False)
    for text in blocks("drive.md")[:2]:
        home.run(text)
    home.drive.rename(home.place / "drawer")
    assert "deferred" in home.run("archiver job run home --only sync", codes=(13,))
    assert "job home: good" in home.run(block("drive.md", "archiver job status home"))
    (home.place / "drawer").rename(home.drive)
    for text in blocks("drive.md")[3:]:
        if "--new-target" not in text:
            home.run(text)
    assert (home.place / "home/from-drive/letter.txt").read_text() == "Dear reader\n"
    home.drive.rename(home.place / "drawer")
    home.drive.mkdir()
    home.run(block("drive.md", "archiver init"))
    second = block("drive.md", "--new-target")
    assert "another one" in home.run(second.replace(" --new-target", ""), codes=(2,))
    home.run(second)
    home.run(second.replace(" --new-target", ""))


def test_drive_that_starts_a_run(home: Home) -> None:
    """The words that the page has for it are those of a profile."""
    nightly(home, encrypted=False)
    assert "`on-plug = true` below `[schedule]`" in PAGES["drive.md"]
    profile = home.place / "home/.config/archiver/home.toml"
    profile.write_text(profile.read_text().replace("[schedule]", "[schedule]\non-plug = true"))
    home.run("archiver job check home")


@pytest.mark.parametrize("encrypted", [False, True])
def test_disaster(home: Home, encrypted: bool) -> None:
    nightly(home, encrypted=encrypted)
    (home.place / "home/Documents/important.txt").write_text("of value")
    home.run("archiver job run home; archiver rescue-script rescue.py")
    (home.place / "home/backups/store").rename(home.drive / "store")
    if encrypted:
        lines = (home.place / "key-to-print.txt").read_text()
        (home.place / "typed-in.txt").write_text(lines)
    subprocess.run(["rm", "-rf", home.place / "home"], check=True)  # the disaster
    (home.place / "home").mkdir()
    subprocess.run(["cp", "-a", home.drive / "store", home.place / "copy-of-store"], check=True)
    before = state_of(home.drive / "store")
    install, *others = blocks("disaster.md")
    assert "pip install" in install  # the installation itself is what CI does
    start = ""
    for text in others:
        if "key recover" in text:
            if not encrypted:
                continue
            home.variables["ARCHIVER_PASSWORD"] = PASSPHRASE
        if "rescue.py" in text:
            continue
        home.run(start + text)
        start += "".join(line + "\n" for line in text.splitlines() if line.startswith("export"))
    assert state_of(home.drive / "store") == before
    assert len(list((home.place / "copy-of-store/.chunks").iterdir())) >= 100
    assert (home.place / "letter.txt").read_text() == "Dear reader\n"
    everything = home.place / "everything"
    assert (everything / "Documents.pxar/important.txt").read_text() == "of value"
    assert (everything / "Pictures.pxar/sea.raw").stat().st_size == 10_000
    if not encrypted:
        home.run(block("disaster.md", "rescue.py"))
        assert list((home.place / "rescued").rglob("important.txt"))


@pytest.mark.skipif("tape" not in COMMANDS, reason="there is no tape command")
def test_tape(home: Home) -> None:
    nightly(home, encrypted=False)
    home.run("archiver job run home")
    for text in blocks("tape.md"):
        if "recovered" in text:
            subprocess.run(["rm", "-rf", home.place / "home/.local/state/archiver/tape"], check=True)
        home.run(text)
    assert (home.place / "files-from-tape/letter.txt").read_text() == "Dear reader\n"
    assert "Documents" in home.run("archiver snapshots --store ./recovered")


COMMAND = re.compile(r"archiver ((?:--?[a-z-]+ )*)([a-z-]+)((?: [a-z-]+)?)")


def test_commands_and_options_that_are_named_exist() -> None:
    commands = {ctx.command_path.removeprefix("archiver "): ctx.command for ctx in every_command(cli)}
    later = set() if "tape" in COMMANDS else {"tape"}
    for page, text in PAGES.items():
        for _, first, second in COMMAND.findall(text):
            if first in later:
                continue
            assert first in commands, (page, first)
            command = commands.get(first + second, commands[first])
            assert command is not None


def test_pages_lead_to_each_other() -> None:
    readme = (ROOT / "README.md").read_text()
    for page, text in PAGES.items():
        assert f"docs/{page}" in readme
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / "docs" / link).exists(), (page, link)
