"""``-o``: splitting, names, types, as qemu-img 7.2 has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import UsageError
from vmm.operations.options import OPTIONS, build_options, collect_options, option_names, options_help, split_options


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1", [("a", "1")]),
        ("a=1,b=2", [("a", "1"), ("b", "2")]),
        ("a", [("a", None)]),
        ("a=", [("a", "")]),
        ("a=x,,y,b", [("a", "x,y"), ("b", None)]),
        ("a=x,,,b", [("a", "x,"), ("b", None)]),
        ("a=x=y", [("a", "x=y")]),
        ("=5", [("", "5")]),
    ],
)
def test_split(text: str, pairs: list[tuple[str, str | None]]) -> None:
    assert split_options(text) == pairs


@pytest.mark.parametrize("text", ["", ",a=1", "a=1,", "a,,b"])
def test_empty_items(text: str) -> None:
    with pytest.raises(UsageError, match="Invalid option list"):
        split_options(text)


@given(st.text(max_size=30))
def test_value_survives_doubled_commas(value: str) -> None:
    assert split_options("name=" + value.replace(",", ",,")) == [("name", value)]


def test_later_ones_win() -> None:
    assert collect_options(["cluster_size=4k", "cluster_size=8k,compat=v3"]) == {"cluster_size": "8k", "compat": "v3"}


def test_types() -> None:
    options, size = build_options(
        "qcow2",
        {
            "cluster_size": "4k",
            "refcount_bits": "0x10",
            "extended_l2": None,
            "nolazy_refcounts": None,
            "backing_file": "a,b",
            "backing_fmt": "raw",
            "compat": "1.1",
            "size": "1M",
        },
    )
    assert size == 1 << 20
    assert options is not None
    assert options.as_fields() == {
        "compat": "1.1",
        "extended-l2": True,
        "cluster-size": 4096,
        "backing-file": "a,b",
        "refcount-bits": 16,
        "backing-format": "raw",
        "lazy-refcounts": False,
    }


def test_python_values() -> None:
    options, _ = build_options("vpc", {"force_size": True, "subformat": "fixed"})
    assert options is not None
    assert options.as_fields() == {"subformat": "fixed", "force-size": True}
    assert build_options("raw", {"size": 512}) == (None, 512)


@pytest.mark.parametrize(
    ("target", "name", "value", "text"),
    [
        ("raw", "cluster_size", "4k", "Invalid parameter 'cluster_size'"),
        ("qcow2", "subformat", "fixed", "Invalid parameter 'subformat'"),
        ("qcow2", "", "5", "Invalid parameter ''"),
        ("qcow2", "\x1b[2J", "5", r"Invalid parameter '\\x1b\[2J'"),
        ("qcow2", "cluster_size", None, "expects a non-negative number below 2\\^64"),
        ("qcow2", "cluster_size", "", "expects a non-negative number"),
        ("qcow2", "cluster_size", "-1", "expects a non-negative number"),
        ("qcow2", "cluster_size", -1, "expects a non-negative number"),
        ("qcow2", "cluster_size", True, "expects a non-negative number"),
        ("qcow2", "refcount_bits", "3x", "expects a number"),
        ("qcow2", "refcount_bits", "18446744073709551616", "too large"),
        ("qcow2", "refcount_bits", "9" * 9999, "expects a number"),
        ("qcow2", "extended_l2", "maybe", "expects 'on' or 'off'"),
        ("qcow2", "size", "9E", "Invalid image size"),
    ],
)
def test_refused(target: str, name: str, value: str | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        build_options(target, {name: value})


def test_encryption_reaches_the_guest() -> None:
    for name, value, method in (("encryption", "on", "aes"), ("encrypt.format", "luks", "luks")):
        options, _ = build_options("qcow2", {name: value})
        assert options is not None
        assert options.encryption == method
    assert build_options("qcow2", {"encryption": "off"}) == (None, None)
    options, _ = build_options("qcow2", {"encrypt.format": "luks", "encrypt.cipher-alg": "aes-128"})
    assert options is not None
    assert (options.encryption, options.cipher_alg) == ("luks", "aes-128")
    with pytest.raises(UsageError, match="Invalid parameter 'cipher-alg'"):
        build_options("qcow2", {"cipher-alg": "aes-128"})


def test_options_of_luks() -> None:
    options, _ = build_options("luks", {"cipher_alg": "aes-128", "ivgen-alg": "essiv", "iterations": 2000})
    assert options is not None
    assert (options.cipher_alg, options.ivgen_alg, options.iterations) == ("aes-128", "essiv", 2000)


@pytest.mark.parametrize(
    ("target", "name", "text"),
    [
        ("luks", "key-secret", "--luks-passphrase-file"),
        ("luks", "iter-time", "iterations=N"),
        ("qcow2", "encrypt.key-secret", "--luks-passphrase-file"),
        ("qcow2", "encrypt.iter-time", "iterations=N"),
    ],
)
def test_qemus_ways_of_encryption_are_refused_with_ours(target: str, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not supported: .*{text}"):
        build_options(target, {name: "1"})


@pytest.mark.parametrize("target", ["raw", "qcow2", "vpc", "luks", "vmdk"])
def test_help_names_every_option(target: str) -> None:
    text = options_help(target)
    assert text.startswith(f"Supported {target} options:\n")
    assert [line.split("=")[0].strip() for line in text.splitlines()[1:]] == option_names(target)
    assert set(option_names(target)) <= set(OPTIONS)
