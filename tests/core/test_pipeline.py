"""The pipeline: bounded, in order, and stopped as a whole by the first failure anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.core.pipeline import Cancelled, Channel, Pipeline, Pool, chunk_workers
from archiver.errors import ArchiverError

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0  # seconds until a test that hangs fails


class Broken(Exception):
    pass


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@given(
    items=some.lists(some.integers(), max_size=200),
    capacity=some.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
def test_order_is_kept_and_nothing_is_lost(items: list[int], capacity: int) -> None:
    got: list[int] = []
    with Pipeline() as pipeline:
        first: Channel[int] = Channel(pipeline, capacity)
        second: Channel[int] = Channel(pipeline, capacity)

        def middle() -> None:
            while (item := first.get()) is not None:
                second.put(item)
            second.close()

        def last() -> None:
            while (item := second.get()) is not None:
                got.append(item)

        pipeline.start(middle, "middle")
        pipeline.start(last, "last")
        for item in items:
            first.put(item)
        first.close()
        pipeline.join()
    assert got == items


def test_channel_never_holds_more_than_its_capacity() -> None:
    with Pipeline() as pipeline:
        channel: Channel[int] = Channel(pipeline, 3)
        put: list[int] = []

        def produce() -> None:
            for number in range(20):
                channel.put(number)
                put.append(number)
            channel.close()

        pipeline.start(produce, "produce")
        for taken in range(20):
            assert len(put) <= taken + 3
            assert channel.get() == taken
        assert channel.get() is None
        pipeline.join()


def test_pool_is_the_budget() -> None:
    """Many threads, two buffers: never more than two are in use at once, and all of the work is done."""
    used = most = done = 0
    lock = threading.Lock()
    with Pipeline() as pipeline:
        pool = Pool(pipeline, [bytearray(1), bytearray(1)])

        def work() -> None:
            nonlocal used, most, done
            for _ in range(50):
                item = pool.acquire()
                with lock:
                    used += 1
                    most = max(most, used)
                with lock:
                    used -= 1
                    done += 1
                pool.release(item)

        for number in range(6):
            pipeline.start(work, f"work-{number}")
        pipeline.join()
    assert done == 300
    assert 1 <= most <= 2


@pytest.mark.parametrize("waiting", ["put", "get", "acquire"])
def test_failure_wakes_whoever_waits(waiting: str) -> None:
    woken: list[str] = []
    with pytest.raises(Broken, match="first"), Pipeline() as pipeline:
        full: Channel[int] = Channel(pipeline, 1)
        full.put(1)
        empty: Channel[int] = Channel(pipeline, 1)
        pool: Pool[int] = Pool(pipeline, [])
        started = threading.Event()

        def wait() -> None:
            started.set()
            try:
                {"put": lambda: full.put(2), "get": empty.get, "acquire": pool.acquire}[waiting]()
            except Cancelled:
                woken.append(waiting)
                raise

        def fail() -> None:
            started.wait(PATIENCE)
            raise Broken("first")

        pipeline.start(wait, "wait")
        pipeline.start(fail, "fail")
        pipeline.join()
    assert woken == [waiting]


@pytest.mark.parametrize("stage", range(3))
def test_failure_in_any_stage_is_raised_once(stage: int) -> None:
    def broken_at(number: int, item: int) -> None:
        if number == stage and item == 7:
            raise Broken(f"stage {number}")

    with pytest.raises(Broken, match=f"stage {stage}") as caught, Pipeline() as pipeline:
        one: Channel[int] = Channel(pipeline, 2)
        two: Channel[int] = Channel(pipeline, 2)

        def middle() -> None:
            while (item := one.get()) is not None:
                broken_at(1, item)
                two.put(item)
            two.close()

        def last() -> None:
            while (item := two.get()) is not None:
                broken_at(2, item)

        pipeline.start(middle, "middle")
        pipeline.start(last, "last")
        for item in range(1000):
            broken_at(0, item)
            one.put(item)
        one.close()
        pipeline.join()
    assert not isinstance(caught.value.__cause__, Broken)


def test_main_thread_that_only_feeds_gets_the_reason() -> None:
    """The feeding thread sees Cancelled, the caller of the pipeline what really happened."""
    with pytest.raises(Broken), Pipeline() as pipeline:
        channel: Channel[int] = Channel(pipeline, 1)

        def fail() -> None:
            channel.get()
            raise Broken

        pipeline.start(fail, "fail")
        while True:
            channel.put(0)


def test_first_failure_wins() -> None:
    with pytest.raises(Broken, match="first"), Pipeline() as pipeline:
        failed = threading.Event()

        def first() -> None:
            try:
                raise Broken("first")
            finally:
                failed.set()

        def second() -> None:
            failed.wait(PATIENCE)
            with pipeline.changed:
                while pipeline.error is None:
                    pipeline.changed.wait(PATIENCE)
            raise Broken("second")

        pipeline.start(first, "first")
        pipeline.start(second, "second")
        pipeline.join()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupt_in_the_main_thread_stops_the_workers(error: type[BaseException]) -> None:
    with pytest.raises(error), Pipeline() as pipeline:
        channel: Channel[int] = Channel(pipeline, 1)

        def get() -> None:
            channel.get()

        pipeline.start(get, "get")
        raise error


def test_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "refused":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ArchiverError, match="new thread"), Pipeline() as pipeline:
        channel: Channel[int] = Channel(pipeline, 1)

        def get() -> None:
            channel.get()

        pipeline.start(get, "get")
        pipeline.start(lambda: None, "refused")


def test_ctrl_c_reaches_a_main_thread_that_waits() -> None:
    """Ctrl-C while every thread waits for another: all end, the interpreter says KeyboardInterrupt."""
    script = """
from archiver.core.pipeline import Channel, Pipeline
with Pipeline() as pipeline:
    channel = Channel(pipeline, 1)
    pipeline.start(lambda: print("waiting", flush=True) or Channel(pipeline, 1).get(), "get")
    channel.put(0)
    channel.put(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(PATIENCE) != 0
        finally:
            process.kill()
        assert process.stderr.read().splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 2), (64, 4)])
def test_workers_do_not_grow_with_the_machine(monkeypatch: pytest.MonkeyPatch, processors: int, workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    assert chunk_workers() == workers
