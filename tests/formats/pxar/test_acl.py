"""ACLs between the kernel's attribute values and what archives hold."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.pxar.acl import from_xattrs, to_xattrs
from formats.pxar.metadata import ACL_UNSET, NO_ACL, Acl, DefaultAcl
from tests.formats.pxar.listings import golden_names, load, metadata_of

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20
NO_ID = 0xFFFFFFFF
FILE, DIR = 0o100000, 0o40000


def value(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL = value((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 4, NO_ID), (OTHER, 0, NO_ID))
FULL = value(
    (USER_OBJ, 6, NO_ID),
    (USER, 7, 1000),
    (USER, 4, 1001),
    (GROUP_OBJ, 4, NO_ID),
    (GROUP, 5, 7),
    (MASK, 6, NO_ID),
    (OTHER, 0, NO_ID),
)


def test_access() -> None:
    assert from_xattrs(FILE | 0o640, None, None) is NO_ACL
    assert from_xattrs(FILE | 0o640, MINIMAL, None) is NO_ACL
    assert from_xattrs(FILE | 0o660, FULL, None) == Acl(((1000, 7), (1001, 4)), ((7, 5),), 4)
    mask_only = value((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 7, NO_ID), (MASK, 4, NO_ID), (OTHER, 4, NO_ID))
    assert from_xattrs(FILE | 0o644, mask_only, None) == Acl(group_obj=7)
    assert to_xattrs(FILE | 0o644, Acl(group_obj=7)) == (mask_only, None)
    assert to_xattrs(FILE | 0o660, Acl(((1001, 4), (1000, 7)), ((7, 5),), 4)) == (FULL, None), "sorted"
    assert to_xattrs(FILE | 0o660, NO_ACL) == (None, None)
    assert to_xattrs(FILE | 0o660, Acl()) == (None, None)


def test_lists_are_sorted() -> None:
    shuffled = value((USER, 4, 9), (USER, 1, 3), (GROUP, 2, 8), (GROUP, 1, 8), (GROUP, 1, 2), (GROUP_OBJ, 1, NO_ID))
    assert from_xattrs(FILE, shuffled, None) == Acl(((3, 1), (9, 4)), ((2, 1), (8, 1), (8, 2)))


def test_named_entries_without_a_mask() -> None:
    """spec 14.6: the mode's group bits serve as mask too."""
    access, _ = to_xattrs(FILE | 0o750, Acl(users=((5, 7),)))
    assert access == value(
        (USER_OBJ, 7, NO_ID), (USER, 7, 5), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)
    )


def test_default() -> None:
    base = value((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID))
    acl = Acl(default=DefaultAcl(7, 5, 0, ACL_UNSET))
    assert from_xattrs(DIR | 0o750, None, base) == acl
    assert from_xattrs(FILE | 0o750, None, base) is NO_ACL, "only directories have one"
    assert to_xattrs(DIR | 0o750, acl) == (None, base), "the kernel keeps no access ACL that says what the mode says"
    nothing = Acl(default=DefaultAcl(ACL_UNSET, ACL_UNSET, ACL_UNSET, ACL_UNSET))
    assert to_xattrs(DIR | 0o750, nothing) == (None, None), "the kernel keeps no empty ACL"
    both = from_xattrs(DIR | 0o760, FULL, FULL)
    assert both == Acl(((1000, 7), (1001, 4)), ((7, 5),), 4, DefaultAcl(6, 4, 0, 6), ((1000, 7), (1001, 4)), ((7, 5),))
    assert from_xattrs(DIR, None, value()) == NO_ACL
    assert from_xattrs(DIR, None, value((USER, 4, 1))) == Acl(default_users=((1, 4),))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\2\0\0",
        FULL[:-1],
        b"\3" + FULL[1:],
        value((3, 4, NO_ID)),
        value((USER, 8, 1)),
        value((USER_OBJ, 6, NO_ID), (USER_OBJ, 6, NO_ID)),
        value((MASK, 6, NO_ID)),
    ],
)
def test_malformed_values(wrong: bytes) -> None:
    with pytest.raises(FormatError):
        from_xattrs(DIR | 0o755, wrong, None)
    if wrong != value((MASK, 6, NO_ID)):
        with pytest.raises(FormatError):
            from_xattrs(DIR | 0o755, None, wrong)


@pytest.mark.parametrize(
    "acl",
    [
        Acl(users=((2**32, 4),)),
        Acl(groups=((1, 8),)),
        Acl(group_obj=2**64 - 1),
        Acl(default=DefaultAcl(7, 5, 0, 8)),
        Acl(default=DefaultAcl(7, 5, 0, 7), default_users=((2**40, 1),)),
    ],
)
def test_values_that_the_kernel_cannot_hold(acl: Acl) -> None:
    with pytest.raises(FormatError, match="ACL entry"):
        to_xattrs(DIR | 0o755, acl)


_pairs = st.lists(st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 7)), max_size=5).map(sorted).map(tuple)
_acls = st.builds(
    Acl,
    users=_pairs,
    groups=_pairs,
    group_obj=st.integers(0, 7),
    default=st.builds(DefaultAcl, *[st.integers(0, 7)] * 3, st.integers(0, 7) | st.just(ACL_UNSET)),
    default_users=_pairs,
    default_groups=_pairs,
)


@given(_acls, st.integers(0, 0o7777))
def test_round_trip(acl: Acl, permissions: int) -> None:
    access, default = to_xattrs(DIR | permissions, acl)
    assert from_xattrs(DIR | permissions, access, default) == acl
    assert access is not None
    found = {tag: perm for tag, perm, _ in struct.iter_unpack("<HHI", access[4:]) if tag not in (USER, GROUP)}
    assert found[USER_OBJ] == permissions >> 6 & 7
    assert found[MASK] == permissions >> 3 & 7
    assert found[OTHER] == permissions & 7


@pytest.mark.parametrize("name", ["features.v1"])
def test_golden(name: str) -> None:
    """All ACLs that came from a kernel survive the way through attribute values."""
    assert name in golden_names()
    seen = 0
    for item in load(name)[2]:
        if "acl" in item:
            acl = metadata_of(item).acl
            assert from_xattrs(item["mode"], *to_xattrs(item["mode"], acl)) == acl
            seen += 1
    assert seen > 5
