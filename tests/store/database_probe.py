"""Does everything a user does on a store whose database was tampered with, in a process that may die of it.

    python -m tests.store.database_probe STORE SOURCE CLEAN  < one tampering a line (JSON)

CLEAN is a good database file of the store. Each line is told on stdout before it is tried; a line of reasons follows.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from archiver.store.status import store_status
from archiver.store.store import Store
from tests.stores import Heard, every_snapshot, new_chunks, save_into

PAGE = 4096


def tampered(clean: bytes, how: dict[str, Any]) -> bytes:
    """``how``: {"cut": size} | {"pages": [[number, "zeros" | "noise" | number of the page to be put there]]} |
    {"flips": seed, "count": n} | {"noise": size}"""
    if "cut" in how:
        return clean[: how["cut"]]
    if "noise" in how:
        return random.Random(how["noise"]).randbytes(how["noise"])
    data = bytearray(clean)
    for number, source in how.get("pages", ()):
        page = {"zeros": bytes(PAGE), "noise": random.Random(number).randbytes(PAGE)}.get(source)
        data[number * PAGE : (number + 1) * PAGE] = page or clean[source * PAGE : (source + 1) * PAGE]
    if "flips" in how:
        rng = random.Random(how["flips"])
        for _ in range(how["count"]):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def use(path: Path, source: Path, *, strict: bool) -> tuple[bool, list[str]]:
    """One process's use of the store: (whether the database was given up, what is wrong).

    Not ``strict``: records may hold other values than were written, as long as every answer is right.
    """
    wrong: list[str] = []
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        refs = every_snapshot(store)
        result = save_into(store, source)
        try:
            if new_chunks(result):
                wrong.append(f"{new_chunks(result)} chunks were stored again")
            if any(not store.info(ref).finished for ref in (*refs, result.snapshot)):
                wrong.append("a snapshot is not seen as finished")
            if store_status(store).snapshots != len(refs) + 1:
                wrong.append("status counts other snapshots")
            database = store.database
            if strict and database is not None and (found := database.check()):
                wrong.append(f"contradictions that nobody noticed: {found[:3]}")
            if database is not None and len(database.stamps()) != len(refs) + 1:
                wrong.append("the database knows other snapshots")
        finally:
            shutil.rmtree(path / result.snapshot.path)
    return any("cannot be used" in text for text in heard.notices), wrong


def main() -> None:
    path, source, clean = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
    database = path / ".archiver" / "db"
    for line in sys.stdin:
        print(line.strip(), flush=True)
        shutil.rmtree(database, ignore_errors=True)
        database.mkdir()
        (database / "data.mdb").write_bytes(tampered(clean, json.loads(line)))
        strict = "flips" not in line
        given_up, wrong = use(path, source, strict=strict)
        if given_up:  # whatever one process found out, the next one mends
            given_up, wrong = use(path, source, strict=strict)
            wrong += ["given up twice"] * given_up
        print("; ".join(wrong), flush=True)


if __name__ == "__main__":
    os.umask(0o022)
    main()
