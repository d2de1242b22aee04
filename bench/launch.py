"""Starts one command and reports what it took: ``python launch.py OUTPUT COMMAND...``; run by ``measure``.

The kernel counts the memory of a starting process in the peak of what it starts. So what starts the measured command
is this process, fresh each time and with few imports, and not the benchmark itself, which grows with the data.

stdout and stderr of the command go to the file OUTPUT; our stdout gets one JSON object: ``code`` (exit code, negative
the signal), ``wall`` and ``cpu`` seconds, ``rss`` and ``anon`` bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

SAMPLE_SECONDS = 0.02
FIELD = b"\nRssAnon:"


def main(output: str, command: list[str]) -> dict[str, float]:
    """Runs ``command`` to its end; OSError when it cannot be started."""
    to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    redirect = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, to, 1),
        (os.POSIX_SPAWN_DUP2, to, 2),
    ]
    peak = [0]
    ended = threading.Event()
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=redirect)
    try:
        sampler = threading.Thread(target=_follow, args=(child, ended, peak))
        sampler.start()
        _, status, spent = os.wait4(child, 0)
    except BaseException:
        ended.set()
        os.kill(child, signal.SIGKILL)
        raise
    wall = time.perf_counter() - started
    ended.set()
    sampler.join()
    return {
        "code": os.waitstatus_to_exitcode(status),
        "wall": wall,
        "cpu": spent.ru_utime + spent.ru_stime,
        "rss": spent.ru_maxrss * 1024,
        "anon": peak[0],
    }


def _follow(pid: int, ended: threading.Event, peak: list[int]) -> None:
    """Keeps the largest RssAnon of a process in ``peak``, until it or the caller ends."""
    while not ended.is_set():
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                found = file.read().partition(FIELD)[2].split(maxsplit=1)
        except OSError:
            return
        if found:
            peak[0] = max(peak[0], int(found[0]) * 1024)
        ended.wait(SAMPLE_SECONDS)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
