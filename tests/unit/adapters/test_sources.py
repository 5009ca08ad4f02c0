"""Addresses of sources: what they name, and whose list covers them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import SourceInvalid
from adapters.sources import Source, is_source, parse_prefix, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://acme/voice", Source("hf", "", ("acme", "voice"))),
        ("HF://acme/voice/", Source("hf", "", ("acme", "voice"))),
        ("hf://acme/voice@main", Source("hf", "", ("acme", "voice"), "main")),
        ("hf://acme/voice@v1.0/sub/dir", Source("hf", "", ("acme", "voice", "sub", "dir"), "v1.0")),
        ("hf://acme/voice/sub", Source("hf", "", ("acme", "voice", "sub"))),
        ("hf://acme/voice@refs/pr/3", Source("hf", "", ("acme", "voice"), "refs/pr/3")),
        ("hf://acme/voice@refs/pr/3/sub", Source("hf", "", ("acme", "voice", "sub"), "refs/pr/3")),
        ("s3://my-bucket", Source("s3", "my-bucket", ())),
        ("s3://my.bucket/a/b_c", Source("s3", "my.bucket", ("a", "b_c"))),
        ("https://Files.Example:8443/a/b", Source("https", "files.example:8443", ("a", "b"))),
        ("https://[fd00::1]:80/a", Source("https", "[fd00::1]:80", ("a",))),
        ("http://10.0.0.7/a", Source("http", "10.0.0.7", ("a",))),
    ],
)
def test_what_an_address_names(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "out/voice",
        "file:///etc/passwd",
        "ftp://files.example/a",
        "hf://",
        "hf://acme",
        "hf://acme/voice@",
        "hf://acme@main/voice",
        "hf://acme/voice/sub@main",
        "hf://acme/voice@refs/pr",
        "hf://datasets/acme/data",
        "hf://acme/../voice",
        "s3://",
        "s3://Bucket/a",
        "s3://user:secret@bucket/a",
        "https://",
        "https:///a",
        "https://user:secret@files.example/a",
        "https://files.example@evil.example/a",
        "https://files.example\\@evil.example/a",
        "https://files.example/a?token=secret",
        "https://files.example/a#b",
        "https://files.example/a/../b",
        "https://files.example/a/./b",
        "https://files.example/a//b",
        "https://files.example/%2e%2e/b",
        "https://files.example/a b",
        "https://files.example/ä",
        "https://files.example./a",
        "https://files.example:port/a",
        "https://files.example/adapter_model.safetensors",
        "https://files.example/voice.zip",
        "https://files.example/" + "a" * 1024,
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SourceInvalid) as caught:
        parse_source(text)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("prefix", "text", "covers"),
    [
        ("hf://", "hf://anybody/voice", True),
        ("hf://acme", "hf://acme/voice@main", True),
        ("hf://acme", "hf://acme-labs/voice", False),
        ("hf://acme/voice", "hf://acme/voice@main/sub", True),
        ("hf://acme/voice", "hf://acme/voices", False),
        ("hf://acme/voice@v1", "hf://acme/voice@v1", True),
        ("hf://acme/voice@v1", "hf://acme/voice", False),
        ("hf://acme/voice@v1", "hf://acme/voice@v2", False),
        ("s3://models", "s3://models/a", True),
        ("s3://models/a", "s3://models/ab", False),
        ("https://files.example/a", "https://files.example/a/b", True),
        ("https://files.example/a", "https://files.example/a", True),
        ("https://files.example/a", "http://files.example/a", False),
        ("https://files.example/a", "https://files.example:8443/a", False),
        ("https://files.example/a", "https://files.example/A", False),
        ("https://files.example", "https://files.example.evil.example/a", False),
        ("s3://acme", "hf://acme/a", False),
    ],
)
def test_which_prefix_covers_what(prefix: str, text: str, covers: bool) -> None:
    assert parse_source(text).is_under([parse_prefix(prefix)]) is covers


@given(st.text(alphabet="hfs3tp:/@._-aA1%?#\\ é[]", max_size=40))
def test_whatever_is_read_is_written_as_it_is_read(text: str) -> None:
    try:
        source = parse_source(text)
    except SourceInvalid:
        return
    assert parse_source(str(source)) == source
    assert not set("?#%\\ ") & set(str(source))


def test_what_is_meant_as_an_address() -> None:
    assert is_source("hf://acme/voice")
    assert is_source("htp://x")
    assert not is_source("out/voice")
    assert not is_source("C:\\voice")
