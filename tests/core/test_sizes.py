"""Sizes as a person writes them, wherever one is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from archiver.core.sizes import LARGEST, parse_size
from archiver.errors import UsageError
from tests.cli.command import call


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        (("0", "0K", "0.0000000001K", "0.9"), 0),
        (("1", "1B", "1b", " 1 ", "1iB", "01"), 1),
        (("1K", "1k", "1KB", "1KiB", "1kib", "1 KiB", "1Ki", "1024"), 1 << 10),
        (("1.5M", "1.50 mb", "1536K"), 3 << 19),
        (("20G", "20GiB"), 20 << 30),
        (("2T", "2048GB"), 2 << 40),
        (("1P", "1024T"), 1 << 50),
        (("0.1G",), (1 << 30) // 10),
        (("123456789012345", "123456789012345B"), 123456789012345),
        (("9" * 18 + "P", "8192P"), LARGEST),
    ],
)
def test_sizes(texts: tuple[str, ...], size: int) -> None:
    assert [parse_size(text) for text in texts] == [size] * len(texts)


@pytest.mark.parametrize(
    "text",
    ["", " ", "K", "-1", "+1", "1.", ".5", "1,5", "1 2", "1KK", "1Bi", "1X", "1e3", "0x10", "9" * 5000, "1\u212a",
     "1\u0131B", "\u0661", "1\n2", "1_000"],
)  # fmt: skip
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--some .* is no size$"):
        parse_size(text, "--some")


def test_least() -> None:
    assert parse_size("1", least=1) == 1
    for text in ("0", "0.5", "0M"):
        with pytest.raises(UsageError, match=r"^'.*' is no size$"):
            parse_size(text, least=1)


@given(some.text(max_size=8))
def test_anything(text: str) -> None:
    try:
        assert 0 <= parse_size(text) <= LARGEST
    except UsageError:
        pass


def test_one_sentence_wherever_a_size_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of profiles are in tests/jobs/test_profile.py."""
    store, source = tmp_path / "store", tmp_path / "source"
    source.mkdir()
    assert call("init", store).code == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    commands: dict[str, tuple[str | Path, ...]] = {
        "--size": ("--store", store, "find", "--size"),
        "--rate": ("sync", store, tmp_path / "other", "--rate"),
        "--budget": ("--store", store, "verify", "--budget"),
        "--max-size": ("tape", "drive", "add", "usb", "--path", tmp_path, "--max-size"),
    }
    for name, arguments in commands.items():
        done = call(*arguments, "1.5 Q")
        assert done.code == 2 and f"archiver: {name} '1.5 Q' is no size\n" in done.err
    monkeypatch.setenv("ARCHIVER_RESERVE", "1.5 Q")
    done = call("--store", store, "backup", source)
    assert done.code == 2 and "archiver: ARCHIVER_RESERVE '1.5 Q' is no size\n" in done.err
