import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import NameInvalid, NameReserved, ReferenceInvalid
from adapters.names import (
    DEFAULT_ALIAS,
    MAX_VERSION,
    Reference,
    is_digest,
    parse_alias,
    parse_name,
    parse_reference,
    parse_version,
    suggest_name,
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True).filter(lambda name: not is_digest(name))
versions = st.integers(1, MAX_VERSION)


@pytest.mark.parametrize("name", ["a", "7", "brand-voice", "a.b_c-d", "x" * 64, "v1."])
def test_names_of_the_grammar_are_taken(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 65,
        "Brand",
        ".a",
        "-a",
        "_a",
        "a b",
        "a/b",
        "../a",
        "a@1",
        "a:b",
        "a\n",
        "\na",
        "ä",
        "a\0",
        "٣",
        "a%2fb",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        parse_name(name)
    assert caught.value.code == "name_invalid"
    assert caught.value.param == "name"


def test_a_name_may_not_read_as_a_digest_or_be_the_base() -> None:
    with pytest.raises(NameReserved):
        parse_name("ab" * 32)
    with pytest.raises(NameReserved):
        parse_name("smollm2", base_names=("smollm2",))
    assert parse_name("smollm2-x", base_names=("smollm2",)) == "smollm2-x"


def test_a_long_bad_name_makes_a_short_message() -> None:
    with pytest.raises(NameInvalid) as caught:
        parse_name("A" * 100_000)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "expected", "pointer"),
    [
        ("brand-voice", Reference("brand-voice"), DEFAULT_ALIAS),
        ("brand-voice@3", Reference("brand-voice", version=3), None),
        ("brand-voice:canary", Reference("brand-voice", alias="canary"), "canary"),
        ("brand-voice:live", Reference("brand-voice", alias="live"), "live"),
    ],
)
def test_references(text: str, expected: Reference, pointer: str | None) -> None:
    reference = parse_reference(text)
    assert reference == expected
    assert reference.pointer == pointer
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a@", ReferenceInvalid),
        ("a@0", ReferenceInvalid),
        ("a@01", ReferenceInvalid),
        ("a@-1", ReferenceInvalid),
        ("a@+1", ReferenceInvalid),
        ("a@1_0", ReferenceInvalid),
        ("a@ 1", ReferenceInvalid),
        ("a@1\n", ReferenceInvalid),
        ("a@٣", ReferenceInvalid),
        (f"a@{MAX_VERSION + 1}", ReferenceInvalid),
        ("a@" + "9" * 5000, ReferenceInvalid),
        ("a@1:live", ReferenceInvalid),
        ("a@1@2", ReferenceInvalid),
        ("a:live@1", NameInvalid),
        ("a:", NameInvalid),
        ("a:b:c", NameInvalid),
        ("@1", NameInvalid),
        (":live", NameInvalid),
        ("", NameInvalid),
    ],
)
def test_invalid_references_name_the_error(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_reference(text)


def test_versions_and_aliases_alone() -> None:
    assert parse_version("2147483647") == MAX_VERSION
    assert parse_alias("canary") == "canary"
    with pytest.raises(NameInvalid) as caught:
        parse_alias("Canary")
    assert caught.value.param == "alias"


@given(names, st.none() | versions, st.none() | names)
def test_a_reference_survives_its_own_text(name: str, version: int | None, alias: str | None) -> None:
    reference = Reference(name, version=version, alias=None if version else alias)
    assert parse_reference(reference.label) == reference


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused_and_never_changes(text: str) -> None:
    try:
        reference = parse_reference(text)
    except (NameInvalid, NameReserved, ReferenceInvalid):
        return
    assert reference.label == text


@given(st.text(max_size=200))
def test_a_suggestion_is_always_a_name(text: str) -> None:
    assert parse_name(suggest_name(text)) == suggest_name(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Märchen & Sagen, v2!", "marchen-sagen-v2"),
        ("brand-voice", "brand-voice"),
        ("  ", "adapter"),
        ("日本", "adapter"),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_suggestions(text: str, name: str) -> None:
    assert suggest_name(text) == name
