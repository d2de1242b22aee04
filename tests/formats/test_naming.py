from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.naming import (
    BACKUP_ID_RE,
    BACKUP_TYPES,
    MAX_TIME,
    check_backup_id,
    check_backup_time,
    check_backup_type,
    check_file_name,
    check_namespace,
    file_kind,
    format_time,
    parse_time,
    server_name,
)

FIRST = string.ascii_letters + string.digits + "_"


@pytest.mark.parametrize("name", ["a", "_", "0", "laptop", "a.b-c_d", "a..b", "A" * 255])
def test_backup_ids(name: str) -> None:
    check_backup_id(name)
    assert BACKUP_ID_RE.match(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "ä", "a\0", "A" * 256, "²"])
def test_no_backup_ids(name: str) -> None:
    with pytest.raises(FormatError):
        check_backup_id(name)


def test_backup_types() -> None:
    for text in BACKUP_TYPES:
        check_backup_type(text)
    for text in ("", "Host", "host ", "lxc"):
        with pytest.raises(FormatError):
            check_backup_type(text)


@pytest.mark.parametrize("text", ["", "a", "a/b", "1/2/3/4/5/6/7", "/".join(["x" * 32] * 7)])
def test_namespaces(text: str) -> None:
    check_namespace(text)


@pytest.mark.parametrize("text", ["/", "a/", "/a", "a//b", "1/2/3/4/5/6/7/8", "x" * 33, "a/..", "ns/.x", "a/" * 1000])
def test_no_namespaces(text: str) -> None:
    with pytest.raises(FormatError):
        check_namespace(text)


@pytest.mark.parametrize(
    ("epoch", "text"),
    [
        (1, "1970-01-01T00:00:01Z"),
        (1593179765, "2020-06-26T13:56:05Z"),
        (1700000000, "2023-11-14T22:13:20Z"),
        (1709164800, "2024-02-29T00:00:00Z"),
        (4107542400, "2100-03-01T00:00:00Z"),
        (MAX_TIME, "9999-12-31T23:59:59Z"),
    ],
)
def test_times(epoch: int, text: str) -> None:
    assert format_time(epoch) == text
    assert parse_time(text) == epoch


@given(st.integers(1, MAX_TIME))
def test_times_round_trip(epoch: int) -> None:
    text = format_time(epoch)
    assert len(text) == 20
    assert parse_time(text) == epoch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2023-11-14T22:13:20",
        "2023-11-14T22:13:20Z\n",
        " 2023-11-14T22:13:20Z",
        "2023-11-14t22:13:20z",
        "2023-11-14 22:13:20Z",
        "2023-11-14T22:13:20+00:00",
        "2023-1-14T22:13:20Z",
        "2023-02-29T00:00:00Z",
        "2023-13-01T00:00:00Z",
        "2023-00-01T00:00:00Z",
        "2023-01-01T24:00:00Z",
        "2023-01-01T00:60:00Z",
        "2016-12-31T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "٢٠٢٣-11-14T22:13:20Z",
    ],
)
def test_no_times(text: str) -> None:
    with pytest.raises(FormatError):
        parse_time(text)


@pytest.mark.parametrize("epoch", [0, -1, MAX_TIME + 1, 2**63, 10**400])
def test_times_out_of_range(epoch: int) -> None:
    with pytest.raises(FormatError):
        format_time(epoch)
    with pytest.raises(FormatError):
        check_backup_time(epoch)


@pytest.mark.parametrize(
    ("name", "full", "kind"),
    [
        ("root.pxar", "root.pxar.didx", "dynamic"),
        ("root.mpxar", "root.mpxar.didx", "dynamic"),
        ("root.ppxar", "root.ppxar.didx", "dynamic"),
        ("catalog.pcat1", "catalog.pcat1.didx", "dynamic"),
        ("drive-scsi0.img", "drive-scsi0.img.fidx", "fixed"),
        ("etc.conf", "etc.conf.blob", "blob"),
        ("index.json", "index.json.blob", "blob"),
        ("rsa-encrypted.key", "rsa-encrypted.key.blob", "blob"),
        ("client.log", "client.log.blob", "blob"),
        ("strange.didx", "strange.didx", "dynamic"),
    ],
)
def test_server_names(name: str, full: str, kind: str) -> None:
    assert server_name(name) == full
    assert server_name(full) == full
    assert file_kind(full) == kind
    check_file_name(full)


@pytest.mark.parametrize("name", ["", "root", "root.tar", ".pxar", "../x.pxar", "a/x.pxar", "x.pxar ", "pxar", "didx"])
def test_no_server_names(name: str) -> None:
    with pytest.raises(FormatError):
        server_name(name)


def test_server_names_stay_file_names() -> None:
    longest = "x" * 245 + ".pxar"
    assert len(server_name(longest)) == 255
    with pytest.raises(FormatError):
        server_name("x" + longest)


@pytest.mark.parametrize(
    "name", ["x.pxar", "x", ".didx", ".blob", "a/b.blob", "../b.blob", "x.blob\n", "x" * 252 + ".blob"]
)
def test_no_file_names(name: str) -> None:
    with pytest.raises(FormatError):
        check_file_name(name)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    for check in (check_backup_id, check_namespace, check_file_name, parse_time, server_name):
        try:
            check(text)
        except FormatError as error:
            assert str(error).isprintable()
