"""The static bound of schemas, choices, grammars and structural tags, and where a request holds them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadRequest
from service.structured.bounds import check, is_lark
from service.structured.limits import TRIED, UNTRIED, TooComplex
from service.structured.parts import GrammarPart
from service.structured.spec import Kind, Spec, specs_of

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}
NESTED: dict[str, Any] = {"type": "string"}
for _ in range(70):
    NESTED = {"items": NESTED}
ATTACK = "(" + "|".join(f"[a-z]{{{n}}}.{{1,{n}}}" for n in range(1, 12)) + ")+"


def refs(chain: int) -> dict[str, Any]:
    steps = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(chain)}
    return {"$defs": {**steps, f"d{chain}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("json", NESTED, "nested deeper than 64 levels"),
        ("json", {"enum": list(range(10_001))}, "10001 entries of `enum`"),
        ("json", {"anyOf": [{"type": "string"}] * 1001}, "1001 branches"),
        ("json", {"x": [0] * 20_001}, "values, of whatever kind"),
        ("json", {"type": "string", "maxLength": 2_000_000}, "`maxLength`"),
        ("json", {"type": "array", "minItems": -2_000_000}, "`minItems`"),
        ("json", {"type": "string", "pattern": ATTACK}, "inside another repeat"),
        ("json", {"patternProperties": {ATTACK: {}}}, "inside another repeat"),
        ("json", {"items": [{"pattern": f"{n}"} for n in range(65)]}, "65 regular expressions"),
        ("json", refs(30), "leads through more than 16"),
        ("json", {"$ref": "#"}, "leads through more than 16"),
        ("json", {"a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, "leads through more than 16"),
        ("json", {"items": [{"$ref": "#/items"}] * 1001}, "1001 `\\$ref`s"),
        ("choice", ["x"] * 10_001, "10001 entries"),
        ("grammar", "root ::= a\n" + "a ::= b\n" * 500, "501 rules"),
        ("grammar", "root ::= (b | c)+" + ' | "x"' * 32, "34 alternatives and repeats in the rule 'root'"),
        ("grammar", "root ::= a{1,99999}", "99999 for the bound of a repeat"),
        ("grammar", "root ::= " + "(" * 40 + ")" * 40, "groups within each other"),
        ("grammar", "root ::= " + "a " * 20_001, "more than 20000 symbols"),
        ("grammar", "root ::= a" + "*" * 4, "quantifiers in a row"),
        ("grammar", f"start: /{ATTACK}/", "inside another repeat"),
        ("structural_tag", {"tags": [{"begin": "<a>"}] * 300}, "tags and formats"),
        ("structural_tag", {"format": {"type": "regex", "pattern": ATTACK}}, "inside another repeat"),
        ("structural_tag", {"structures": [{"schema": {"pattern": ATTACK}}]}, "inside another repeat"),
    ],
)
def test_what_is_beyond_a_bound_is_refused_by_name(kind: Kind, value: Any, said: str) -> None:
    with pytest.raises(TooComplex, match=said) as caught:
        check(Spec(kind, value, "the.field"), TRIED)
    assert "`the.field" in caught.value.message


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("json", "{", "not JSON"),
        ("json", {"$ref": "https://example.com/x"}, "only references within"),
        ("json", {"$ref": "#/nowhere"}, "nothing at that place"),
        ("json", {"a": [1], "$ref": "#/a/999999999999999"}, "nothing at that place"),
        ("structural_tag", "[", "not JSON"),
        ("regex", 5, "must be a string"),
    ],
)
def test_what_is_not_well_formed_is_refused(kind: Kind, value: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check(Spec(kind, value, "field"), TRIED)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", OBJECT),
        ("json", '{"type": "object"}'),
        ("json", True),
        ("json", {"$defs": {"n": {"properties": {"c": {"items": {"$ref": "#/$defs/n"}}}}}, "$ref": "#/$defs/n"}),
        ("json", {"properties": {"a~b/c": {"$ref": "#/$defs/x~1y~0"}}, "$defs": {"x/y~": {"type": "string"}}}),
        ("json", {"type": "string", "maxLength": 5000}),
        ("choice", ["yes", "no"]),
        ("regex", r"\d{4}-\d{2}"),
        ("grammar", 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"\n'),
        ("grammar", 'start: expr\nexpr: term ("+" term)*\nterm: /[0-9]+/ | "(" expr ")"\n'),
    ],
)
def test_honest_specifications_pass_even_without_a_trial(kind: Kind, value: Any) -> None:
    check(Spec(kind, value, "field"), UNTRIED)


def test_what_may_hide_behind_the_rest_is_tried_by_itself() -> None:
    schema = {"anyOf": [*({"const": n} for n in range(9)), {"type": "string", "pattern": "[ab]{1,9}"}]}
    assert check(Spec("json", schema, "f"), TRIED) == [
        GrammarPart("json", '{"type":"string","pattern":"[ab]{1,9}"}'),
        GrammarPart("ref", "#/anyOf/9"),
    ]
    texts = {"anyOf": [{"type": "string", "maxLength": n} for n in range(6)]}
    parts = check(Spec("json", {"properties": {"a": texts}}, "f"), TRIED)
    assert parts[0] == GrammarPart("json", '{"type":"string","maxLength":0}')
    assert parts[-1] == GrammarPart("ref", "#/properties/a")
    grammar = 'root ::= "x" a | b\na ::= [a-z]{2,3}\nb ::= "(" b ")" | "{9}"\nc ::= "c"\n'
    assert check(Spec("grammar", grammar, "f"), TRIED) == [GrammarPart("rule", "a"), GrammarPart("rule", "b")]


FREE = {"type": "string"}
COSTLY = {"type": "string", "pattern": "^.{0,200}$"}
NEEDS = GrammarPart("json", '{"type":"string","pattern":"^.{0,200}$"}')
GRAMMAR = 'root ::= [a-z]* "!" r\nr ::= "(" ("x" [^"]{0,200} | "y") [a-z]* ")"\n'


@pytest.mark.parametrize(
    ("kind", "value", "part"),
    [
        ("json", {"properties": {"p": FREE, "q": FREE, "z": COSTLY}, "required": ["p", "q", "z"]}, NEEDS),
        ("json", {"prefixItems": [{"items": FREE, "minItems": 50}, COSTLY]}, NEEDS),
        ("json", {"properties": {"a": FREE, "b": {"allOf": [COSTLY]}}}, NEEDS),
        ("json", {"$defs": {"d": COSTLY}, "properties": {"a": FREE, "b": {"$ref": "#/$defs/d"}}}, NEEDS),
        ("json", {"additionalProperties": COSTLY}, NEEDS),
        ("json", {"patternProperties": {"^.{0,200}$": FREE}}, NEEDS),
        ("json", {"items": {"anyOf": [FREE, COSTLY]}}, GrammarPart("ref", "#/items")),
        ("json", {"items": {"enum": [str(n) for n in range(100)]}}, GrammarPart("ref", "#/items")),
        ("regex", "[a-z]+!.{0,200}", GrammarPart("regex", ".{0,200}")),
        ("regex", "(x[a-z ]{9,20}|y)z+", GrammarPart("regex", "[a-z ]{9,20}z+")),
        ("grammar", GRAMMAR, GrammarPart("tail", '[^"]{0,200} [a-z]* ")"')),
        (
            "grammar",
            'start: /[a-z]+/ "!" r\nr: "(" X ~ 1..200 "."\nX: "a" | /[b-z]/',
            GrammarPart("tail", 'X ~ 1..200 "."'),
        ),
        ("structural_tag", {"format": {"type": "json_schema", "json_schema": {"items": COSTLY}}}, NEEDS),
        (
            "structural_tag",
            {"format": {"type": "grammar", "grammar": GRAMMAR}},
            GrammarPart("tail", '[^"]{0,200} [a-z]* ")"', within=GRAMMAR),
        ),
        (
            "structural_tag",
            {"format": {"type": "json_schema", "json_schema": {"items": {"maxItems": 9}}}},
            GrammarPart("ref", "#/items", within='{"items":{"maxItems":9}}'),
        ),
        (
            "structural_tag",
            {"format": {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "or", "elements": []}]}},
            GrammarPart("structural_tag", '{"type":"structural_tag","format":{"type":"or","elements":[]}}'),
        ),
    ],
)
def test_no_beginning_hides_what_is_dear(kind: Kind, value: Any, part: GrammarPart) -> None:
    parts = check(Spec(kind, value, "f"), TRIED)
    assert part in parts, parts


STRICT: list[tuple[Kind, Any]] = [
    ("json", {"type": "string", "pattern": "^.{0,200}$"}),
    ("json", {"type": "string", "pattern": "^.{0,90}.{0,90}.{0,90}.{0,90}$"}),
    ("json", {"patternProperties": {"^.{0,200}$": {}}}),
    ("regex", ".{0,200}"),
    ("regex", "x[a-z]{30}"),
    ("regex", ".{0,10}.{0,10}"),
    ("regex", "(.+)+"),
    ("regex", "([a-z.]+)*"),
    ("grammar", 'root ::= "a" [^"]{0,200}'),
    ("grammar", "root ::= [a-z]{0,20} [a-z]{0,20}"),
    ("grammar", "root ::= a a a\na ::= [a-z]{0,20}"),
    ("grammar", "root ::= a+\na ::= b\nb ::= [a-z]+"),
    ("grammar", "root ::= s\ns ::= s s | [a-z]\n"),
    ("grammar", "root ::= s\ns ::= [a-z] s s | [a-z]\n"),
    ("grammar", 'root ::= s\ns ::= "a" s s | "a"'),
    ("grammar", "root ::= a\na ::= b\nb ::= c? a [a-z]\nc ::= [0-9]"),
    ("grammar", "start: /.{0,200}/"),
    ("grammar", "start: X~1..200\nX: /[a-z]/"),
    ("grammar", "start: s\ns: s s | /[a-z]/"),
    ("structural_tag", {"format": {"type": "regex", "pattern": ".{0,200}"}}),
]


@pytest.mark.parametrize(("kind", "value"), STRICT)
def test_without_a_trial_what_can_stop_an_engine_is_refused(kind: Kind, value: Any) -> None:
    check(Spec(kind, value, "f"), TRIED)  # a trial decides
    with pytest.raises(TooComplex, match="no process is there to try it"):
        check(Spec(kind, value, "f"), UNTRIED)


JSON_GRAMMAR = r"""root ::= object
value ::= object | array | string | number | ("true" | "false" | "null")
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= [ \t\n]*
"""


def test_common_grammars_pass_without_a_trial() -> None:
    check(Spec("grammar", JSON_GRAMMAR, "f"), UNTRIED)
    check(Spec("grammar", 'root ::= line+\nline ::= "- " [^\\n]+ "\\n"', "f"), UNTRIED)


def test_lark_is_told_from_ebnf_as_vllm_does() -> None:
    assert is_lark("start: x\n")
    assert is_lark("start: x // a ::= b\n")
    assert not is_lark("# x\nroot ::= y\n")


NAMES = ["anyOf", "enum", "$ref", "pattern", "maxLength", "items", "properties", "x"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=12,
)


def refusal(kind: Kind, value: Any) -> str:
    """The message, empty where there is none; whatever else is raised fails the test."""
    try:
        check(Spec(kind, value, "field"), TRIED)
    except BadRequest as error:
        return error.message
    return ""


@settings(max_examples=40)
@given(JSON_VALUES)
def test_any_json_is_measured_or_refused(value: Any) -> None:
    messages = [refusal("json", value), refusal("structural_tag", value)]
    assert all(not message or message.startswith("`field") for message in messages)


@given(st.text(max_size=80))
def test_any_grammar_is_measured_or_refused(text: str) -> None:
    message = refusal("grammar", text)
    assert not message or message.startswith("`field")


def paths(body: dict[str, Any]) -> list[str]:
    return [spec.path for spec in specs_of(body)]


def test_every_field_that_ends_as_a_grammar_is_found() -> None:
    schema_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT}}
    assert paths({"response_format": schema_format}) == ["response_format.json_schema.schema"]
    assert paths({"response_format": {"type": "structural_tag", "structures": []}}) == ["response_format"]
    for kind in ("json", "regex", "choice", "grammar", "structural_tag", "whitespace_pattern"):
        assert paths({"structured_outputs": {kind: "x"}}) == [f"structured_outputs.{kind}"]
    assert paths({"text": {"format": {"type": "json_schema", "schema": OBJECT}}}) == ["text.format.schema"]
    assert paths({"output_config": {"format": {"schema": OBJECT}}}) == ["output_config.format.schema"]


def test_plain_requests_have_none() -> None:
    plain: list[dict[str, Any]] = [
        {},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        {"structured_outputs": {"json_object": True}},
        {"text": {"format": {"type": "text"}}},
        {"text": None, "output_config": {"effort": "low"}, "structured_outputs": None},
    ]
    assert [paths(body) for body in plain] == [[]] * len(plain)


CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": OBJECT}}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": OBJECT}
MESSAGES_TOOL = {"name": "f", "input_schema": OBJECT}


@pytest.mark.parametrize(
    ("tool", "path", "forced"),
    [
        (CHAT_TOOL, "tools.0.function.parameters", {"type": "function", "function": {"name": "f"}}),
        (RESPONSES_TOOL, "tools.0.parameters", {"type": "function", "name": "f"}),
        (MESSAGES_TOOL, "tools.0.input_schema", {"type": "tool", "name": "f"}),
    ],
)
def test_tools_count_where_a_call_is_decoded_by_their_schema(
    tool: dict[str, Any], path: str, forced: dict[str, Any]
) -> None:
    def found(**more: Any) -> list[str]:
        return paths({"tools": [tool], **more})

    assert found(tool_choice=forced) == found(tool_choice="required") == found(tool_choice={"type": "any"}) == [path]
    assert found(parallel_tool_calls=False) == [path]
    assert found(tool_choice={"type": "auto", "disable_parallel_tool_use": True}) == [path]
    inner = tool.get("function")
    strict = {**tool, "function": {**inner, "strict": True}} if isinstance(inner, dict) else {**tool, "strict": True}
    assert paths({"tools": [strict]}) == [path]
    for choice in (None, "auto", "none", {"type": "auto"}, {"type": "none"}):
        assert found(tool_choice=choice) == []
