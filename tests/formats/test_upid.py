"""Task ids: the form that a PBS reads."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.upid import Upid, node_name

TEXT = r"UPID:elsa:000003E8:0001E240:00000002:5FC0A1B2:verify:store1-host-elsa\x2d1:root@pam!token:"


def test_parts() -> None:
    upid = Upid("elsa", 1000, 123456, 2, 0x5FC0A1B2, "verify", "store1/host/elsa-1", "root@pam!token")
    assert upid.encode() == TEXT
    assert Upid.decode(TEXT) == upid


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("", ""), ("a.b_C9", "a.b_C9"), (".a", r"\x2ea"), ("a/b-c", r"a-b\x2dc"), ("ä:", r"\xc3\xa4\x3a"), (" ", r"\x20")],
)
def test_id_is_escaped_like_a_unit_name(text: str, escaped: str) -> None:
    upid = Upid("a", 1, 1, 1, 1, "verify", text, "root@pam")
    assert upid.encode().split(":")[7] == escaped
    assert Upid.decode(upid.encode()).id == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT + "x",
        TEXT.replace("UPID", "upid"),
        TEXT.replace("elsa:", "-elsa:", 1),
        TEXT.replace("elsa:", "elsa.home:", 1),
        TEXT.replace("000003E8", "3E8"),
        TEXT.replace("5FC0A1B2", "15FC0A1B2"),
        TEXT.replace("5FC0A1B2", "5FC0A1BG"),
        TEXT.replace("root@pam!token", ""),
        TEXT.replace("verify", ""),
        TEXT.replace("verify", "ver ify"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(FormatError):
        Upid.decode(text)


@pytest.mark.parametrize(
    "change", [{"node": "a b"}, {"node": ""}, {"pid": -1}, {"start": 1 << 32}, {"type": "a:b"}, {"owner": "a b"}]
)
def test_values_that_no_id_can_have(change: dict[str, object]) -> None:
    values: dict[str, object] = {
        "node": "a",
        "pid": 1,
        "process_start": 1,
        "task": 1,
        "start": 1,
        "type": "t",
        "id": "",
        "owner": "o",
    }
    Upid(**values)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        Upid(**{**values, **change})  # type: ignore[arg-type]


@given(st.text(), st.integers(0, 2**32 - 1), st.integers(0, 2**36 - 1))
def test_there_and_back(text: str, start: int, process_start: int) -> None:
    upid = Upid("a", 1, process_start, 1, start, "verify", text.encode("utf-8", "ignore").decode(), "root@pam")
    assert Upid.decode(upid.encode()) == upid


@given(st.text(alphabet=string.printable + "äß"))
def test_any_host_name_makes_a_node(host: str) -> None:
    Upid(node_name(host), 1, 1, 1, 1, "verify", "", "root@pam")


def test_node_names() -> None:
    assert [node_name(host) for host in ("elsa", "elsa.home.org", "my_pc-1", "-", "")] == [
        "elsa",
        "elsa",
        "mypc-1",
        "localhost",
        "localhost",
    ]
