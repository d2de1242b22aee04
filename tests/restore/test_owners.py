"""Whose restored entries are: by number, by name, mapped, left out."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, call
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import ROOT, make_store, save

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
SOMEBODY = pwd.getpwuid(NOBODY).pw_name


@pytest.fixture
def store(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/sh\n{SOMEBODY}:x:1500:1500::/:/bin/sh\nbroken\nx:y:z\n")
    (source / "etc/group").write_text("root:x:0:\nno-such-group-here:x:1500:\n")
    for name, owner in (("mine", 1500), ("other", 1600)):
        (source / name).write_text(name)
        os.chown(source / name, owner, owner)
        (source / name).chmod(0o6755)
    save(make_store(tmp_path / "store"), source)
    return tmp_path / "store"


def owners(out: Path) -> dict[str, tuple[int, int, int]]:
    found = {name: (out / name).stat() for name in ("mine", "other")}
    return {name: (status.st_uid, status.st_gid, status.st_mode & 0o7000) for name, status in found.items()}


def bring(store: Path, *options: str) -> tuple[Done, dict[str, tuple[int, int, int]]]:
    out = store.parent / "out"
    done = call("--store", store, "restore", "latest", out, *options)
    return done, owners(out) if done.code == 0 else {}


@needs_root
@pytest.mark.parametrize(
    ("options", "mine", "other"),
    [
        ([], (1500, 1500, 0o6000), (1600, 1600, 0o6000)),
        (["--owner", "name"], (NOBODY, 1500, 0o6000), (1600, 1600, 0o6000)),
        (["--owner", "none"], (0, 0, 0), (0, 0, 0)),
        (["--usermap", "1500:7,*:root"], (7, 1500, 0o6000), (0, 1600, 0o6000)),
        (["--usermap", f"{SOMEBODY}:8", "--groupmap", "no-such-group-here:root"], (8, 0, 0o6000), (1600, 1600, 0o6000)),
        (["--owner", "name", "--usermap", "1500:9"], (9, 1500, 0o6000), (1600, 1600, 0o6000)),
    ],
)
def test_owners(store: Path, options: list[str], mine: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    done, found = bring(store, *options)
    assert done.code == 0, done.err
    assert found == {"mine": mine, "other": other}
    done = call(
        "--store", store, "restore", "latest", store.parent / "out", "--overwrite", "always", "--json", *options
    )
    assert done.code == 0 and (done.document["replaced"], done.document["updated"]) == (0, 0)


@needs_root
@pytest.mark.parametrize(
    "options",
    [
        ["--usermap", "1500"],
        ["--usermap", "1500:no-such-user-here"],
        ["--usermap", "no-such-user-there:0"],
        ["--groupmap", "1:99999999999"],
        ["--owner", "none", "--usermap", "1:2"],
    ],
)
def test_wrong_maps(store: Path, options: list[str]) -> None:
    done, _ = bring(store, *options)
    assert done.code == 2 and not (store.parent / "out").exists()


@needs_root
def test_names_of_an_archive_without_them(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save(make_store(tmp_path / "store"), tmp_path / "source")
    done = call("--store", tmp_path / "store", "restore", "latest", tmp_path / "out", "--owner", "name")
    assert done.code == 2 and "has no /etc/passwd" in done.err


@needs_root
def test_an_ordinary_user(tmp_path: Path) -> None:
    """What may not be restored is listed, exit code 3, and planned so; left out it is no problem."""
    with world_readable_directory() as place:
        (place / "source").mkdir()
        (place / "source/file").write_text("text")
        os.mknod(place / "source/device", 0o20666, os.makedev(1, 3))
        save(make_store(place / "store"), place / "source")
        os.system(f"chmod -R a+rX {place}/store")
        (place / "home").mkdir()
        os.chown(place / "home", NOBODY, NOBODY)

        for option in ("--dry-run", "--verify"):  # an ordinary user may not be able to load modules
            call("--store", place / "store", "restore", "latest", place / "loaded", "--json", option)

        def work() -> Any:
            os.chdir(ROOT)
            for name in ("CACHE", "CONFIG", "DATA"):
                os.environ[f"XDG_{name}_HOME"] = str(place / "home/xdg")
            results = []
            for number, options in enumerate((["--dry-run"], [], ["--owner", "none", "--exclude", "device"])):
                arguments: list[str | Path] = [
                    "--store",
                    place / "store",
                    "--read-only",
                    "restore",
                    "latest",
                    place / "home" / str(number),
                ]
                done = call(*arguments, "--json", *options)
                results.append((done.code, done.out, done.err))
            return results

        import json

        plan, done, left_out = as_ordinary_user(work)
        assert (plan[0], done[0], left_out[0]) == (3, 3, 0), (plan, done, left_out)
        told = {item["path"]: item["reasons"] for item in json.loads(plan[1])["items"]}
        assert told == {"/": ["owner 0:0"], "/file": ["owner 0:0"], "/device": ["only root makes devices", "owner 0:0"]}
        errors = {(error["path"], error["kind"]) for error in json.loads(done[1])["errors"]}
        assert errors == {("/", "attribute"), ("/file", "attribute"), ("/device", "not-restored")}
        assert (place / "home/2/file").stat().st_uid == NOBODY
