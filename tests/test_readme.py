"""What the README shows is run as it stands there."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ask, call
from tests.cli.stores import small_tree
from tests.mounting import has_fuse, mounted, need_fuse

ROOT = Path(__file__).parent.parent
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines())
    for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", (ROOT / "README.md").read_text(), re.MULTILINE)
]


def block(start: str) -> str:
    (found,) = [text for text in BLOCKS if start in text]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory that looks like the repository, with ``archiver`` on the path of its venv."""
    for name in ("archiver", "formats"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = tmp_path / ".venv/bin/archiver"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -m archiver "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}/.venv/bin:$PATH\n")
    return tmp_path


def run(script: str, directory: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ARCHIVER", "XDG"))}
    environment |= {"HOME": str(directory / "home"), "XDG_CACHE_HOME": str(directory / "cache")}
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_first_command_then_tour(checkout: Path) -> None:
    first = block("archiver --store ./store init")
    _, installed = first.split("pip install -q . && ")  # the installation itself is what CI does
    assert "snapshot" in run(installed, checkout)
    tour = "\n".join(block("export ARCHIVER_STORE").splitlines()[:2])
    output = run(block("export ARCHIVER_STORE"), checkout)
    assert "verified" in output
    assert "0 errors" in output
    restored = run(f"{tour}\n{block('--overwrite always --delete ')}", checkout)
    assert restored.count(", verified") == 4 and "would create 0, replace 0" in restored
    assert (checkout / "errors.before").read_bytes() == (checkout / "archiver" / "errors.py").read_bytes()
    run(f"export PATH={checkout}/.venv/bin:$PATH ARCHIVER_STORE=./store\n{block('archiver history')}", checkout)
    house = run(f"export PATH={checkout}/.venv/bin:$PATH ARCHIVER_STORE=./store\n{block('--keep-within')}", checkout)
    assert "would remove 0 of 2 snapshots" in house and "removed 1 of 1 snapshots" in house and "attic" in house
    assert "\nremoved: " in run(f"{tour}\n{block('archiver du latest')}", checkout)
    assert "\nremoved: " in run(f"{tour}\n{block('--keep-last 2')}", checkout)
    assert "no contradictions\nrebuilt: " in run(f"{tour}\n{block('archiver db check')}", checkout)
    copied = run(f"{tour}\n{block('archiver sync')}", checkout)
    assert "would copy 1 snapshots" in copied and "copied 1 of 1" in copied and "the copy is complete" in copied
    heal = block("archiver heal").splitlines()
    assert "nothing is damaged" in run("\n".join((tour, *heal)), checkout)
    max((checkout / "store/.chunks").glob("*/*"), key=lambda chunk: chunk.stat().st_size).unlink()
    assert "1 are healed" in run(f"{tour}\n{heal[-1]}", checkout)
    formats = run(f"{tour}\n{block('--format tar.zst')}", checkout)
    assert formats.count("verified") == 2 and "home.pxar" in formats
    assert (checkout / "names.txt").read_text().startswith("./\n")
    assert (checkout / "restored" / "errors.py").read_bytes() == (checkout / "archiver" / "errors.py").read_bytes()


def test_images_and_rescue(checkout: Path) -> None:
    (checkout / "disk.raw").write_bytes(b"some data".ljust(9_000_001, b"\0"))
    run(".venv/bin/archiver --store ./store init", checkout)
    start = ". .venv/bin/activate\nexport ARCHIVER_STORE=./store\n"
    assert "verified" in run(start + block("disk.img:./disk.raw"), checkout)
    assert (checkout / "disk.copy").read_bytes() == (checkout / "disk.raw").read_bytes()
    output = run(start + block("archiver rescue-script"), checkout)
    assert "disk.img  passwd.conf" in output and "extracted 1 entries, 0 damaged" in output
    assert (checkout / "rescued/base.img").read_bytes() == (checkout / "disk.raw").read_bytes()


def test_mount_and_shell(checkout: Path) -> None:
    *start, backup = block("export ARCHIVER_STORE").splitlines()[:4]
    tour = "\n".join(start)
    init, shell = ".venv/bin/archiver --store ./store init", block("archiver shell latest")
    output = run(f"{init}\n{tour}\n{backup}\n{shell}", checkout)
    assert "/cli/key.py" in output and (checkout / "some/cli/look.py").exists()
    need_fuse()
    commands = [line.partition("#")[0] for line in block("archiver mount ./mnt").splitlines()]
    assert len(commands) == 2
    for command, found in zip(commands, ("host", "errors.py"), strict=True):
        wait = "for i in $(seq 300); do mountpoint -q mnt && break; sleep 0.1; done"
        script = f"mkdir -p mnt; {command} >&2 & {wait}; ls mnt; umount mnt; wait $!"
        assert found in run(f"{tour}\n{script}", checkout)


def test_keys(checkout: Path) -> None:
    run("mkdir home && .venv/bin/archiver --store ./store init", checkout)
    start = ". .venv/bin/activate\nexport ARCHIVER_STORE=./store\n"
    output = run(start + block("archiver key create --hint"), checkout)
    assert output.count("compared bit for bit") == 2
    assert "1 of 1 encrypted or signed snapshots were made with this key" in output
    assert (checkout / "home/.config/archiver/encryption-key.json").exists()


def test_tape(checkout: Path) -> None:
    (checkout / "source").mkdir()
    (checkout / "source/file").write_bytes(b"contents")
    run(".venv/bin/archiver --store ./store init && .venv/bin/archiver --store ./store backup ./source", checkout)
    output = run(f". .venv/bin/activate\nexport ARCHIVER_STORE=./store\n{block('tape pool create offline')}", checkout)
    assert "onto MONDAY" in output and "onto TUESDAY" in output and "restored 1 snapshots" in output
    assert [line.split()[0] for line in output.splitlines() if " offline " in line].count("MONDAY") == 1
    listed = run(".venv/bin/archiver --store ./again snapshots", checkout)
    assert listed.count("host/") == 1
    assert not any("MONDAY" in file.name for file in (checkout / "disk").iterdir())


MEMBER = re.compile(r"(\w+)(?: [\[{]([^]}]*)[]}](?: or null)?)?(?:, |$)")


def documented() -> dict[str, dict[str, set[str]]]:
    """Of each command the members of its document, and the members of these where they are told."""
    found: dict[str, dict[str, set[str]]] = {}
    section = (ROOT / "README.md").read_text().split("### JSON\n")[1]
    for commands, text in re.findall(r"^\| (`.*`) \| (.*) \|$", section, re.MULTILINE):
        members = dict(found["key show"]) if text.startswith("the same, ") else {}
        for name, inner in MEMBER.findall(text.removeprefix("the same, ")):
            members[name] = set(inner.split(", ")) - {""}
        found |= dict.fromkeys(re.findall(r"`(.*?)`", commands), members)
    return found


def inner_members(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value)
    return {name for item in value for name in item} if isinstance(value, list) else set()


def test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the members that the table names, and no others."""
    monkeypatch.setenv("ARCHIVER_STORE", str(tmp_path / "store"))
    for name in ("PASSWORD", "NEW_PASSWORD", "MASTER_PASSWORD"):
        monkeypatch.setenv(f"ARCHIVER_{name}", "a passphrase")
    source, pem, out = small_tree(tmp_path / "source"), tmp_path / "master-private.pem", tmp_path / "out"
    master = ("--master-keyfile", pem)
    commands: dict[str, tuple[str | Path, ...]] = {
        "init": (tmp_path / "store",),
        "key create": ("--kdf", "pbkdf2"),
        "key show": (),
        "key change-passphrase": ("--kdf", "pbkdf2"),
        "key create-master-key": (tmp_path,),
        "key import-master-pubkey": (tmp_path / "master-public.pem",),
        "backup": (source,),
        "snapshots": (),
        "groups": (),
        "files": ("latest",),
        "ls": ("latest", "-R"),
        "find": ("*",),
        "history": ("link",),
        "status": (),
        "du": (),
        "protect": ("latest", "--off"),
        "note": ("latest",),
        "owner": (),
        "ns list": (),
        "prune": ("--keep-last", "1"),
        "gc": (),
        "db check": (),
        "key test": (),
        "rescue-script": (tmp_path / "rescue.py",),
        "key drill": master,
        "key recover": (*master, "--kdf", "none", "--force"),
    }
    table = documented()
    later = {
        "import",
        "verify",
        "heal",
        "restore",
        "restore --dry-run",
        "backup --dry-run",
        "forget",
        "diff",
        "diff --sizes",
    }
    later |= {"debug recover", "debug recover-chunks", "mount", "shell"}
    later |= {"job install", "job uninstall", "job notify", "job report", "job report --run"}
    later |= {"manpages", "completion", "drill", "job run", "job run --dry-run"}
    later |= {f"job {name}" for name in ("list", "check", "show", "ack", "status")}
    assert table.keys() == commands.keys() | later
    documents: dict[str, Any] = {}
    for name, arguments in commands.items():
        group = (documents["groups"]["items"][0]["group"],) if name == "owner" else ()
        documents[name] = ask(*name.split(), *group, *arguments)
    documents["history"]["items"] += ask("history", "file")["items"]  # a link has no size, a file no target
    (source / "file").write_bytes(b"changed")
    for name in ("diff", "diff --sizes"):
        done = call(*name.split(), "latest", source, "--json")
        assert done.code == 4
        documents[name] = done.document
    documents["forget"] = ask("forget", "latest", "--dry-run")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ls\n")))
    documents["shell"] = ask("shell", "latest")
    if has_fuse():
        with mounted(tmp_path / "mnt", "--json", "mount", "latest") as mount:
            documents["mount"] = mount.document
    documents["restore --dry-run"] = ask("restore", "latest", out, "--dry-run")
    chunks = (tmp_path / "store/.chunks").glob("*/*")
    lost = min(chunks, key=lambda chunk: chunk.stat().st_size)  # that of the contents: there are errors to look at
    documents["debug recover-chunks"] = ask("debug", "recover-chunks", lost.name, tmp_path / "contents")
    lost.unlink()
    documents["import"] = ask("import", ROOT / "tests/golden/pxar/plain.pxar", "--id", "elsewhere", "--time", "1")
    for index in (tmp_path / "store").glob("host/*/*/*.didx"):
        done = call("debug", "recover", index, tmp_path / f"{index.parent.name}-{index.name}", "--zero-fill", "--json")
        if done.code == 20:
            documents["debug recover"] = done.document
    for name, arguments in {"verify": (), "heal": (), "restore": ("latest", out)}.items():
        done = call(name, *arguments, "--json")
        assert done.code == 20 and done.document["items" if name == "heal" else "errors"]
        documents[name] = done.document
    empty = {(name, "errors") for name in ("backup", "import", "diff", "diff --sizes")} | {
        ("debug recover-chunks", "items"),
        ("find", "not_searched"),
        ("history", "not_searched"),
    }
    for name, document in documents.items():
        assert document.keys() - {"schema"} == table[name].keys(), name
        for member, inner in table[name].items():
            if inner and (name, member) not in empty:
                assert inner_members(document[member]) == inner, (name, member)


def test_library_example(checkout: Path) -> None:
    code = block("from archiver.backup.run").replace("/tmp/archiver-example", str(checkout / "example"))
    assert code.count("\n") < 20
    (checkout / "example").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=os.environ | {"XDG_CACHE_HOME": str(checkout / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (checkout / "example/out/errors.py").read_bytes() == (checkout / "formats/errors.py").read_bytes()
