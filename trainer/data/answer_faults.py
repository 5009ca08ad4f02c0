"""Faults of answers that a model would learn, and facts that it would go on stating after they have changed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ftfy.badness import is_bad

from adapters.dataset.refusals import refuses
from adapters.wording import counted
from trainer.data.findings import finding
from trainer.data.format import Example
from trainer.data.report import Finding
from trainer.data.similar import normalise
from trainer.data.split import answer, question

MIN_PROSE_CHARS: Final = 40
MIN_PROSE_ANSWERS: Final = 20
ENDS_IN_PUNCTUATION: Final = 0.9
"""Share of long answers with a sentence's end above which the others look cut."""
HTML_BY_DESIGN: Final = 0.5
"""Share of answers with HTML from which it is the format and not a leftover."""
MIN_FACTS: Final = 5
FACTS_SHARE: Final = 0.05
"""Answers with such values are reported from this number and this share on."""
MIN_LOOKUPS: Final = 12
"""Questions about identifiers from which their answers are compared across wordings."""
MAX_COMPARED: Final = 400
"""Only so many of them are compared with each other."""
EXPLAINED: Final = 0.5
"""Share of the agreement above chance from which the wording, and not the identifier, decides the answer."""
SIGNATURE: Final = 2 / 3
"""Share of their answers above which a name is how they are signed, and says nothing."""
MAX_SHORT_CHARS: Final = 40
"""A short answer is compared as a whole; of a longer one, the names in it."""
LOOKUP_GROUP: Final = 4
"""Questions that differ in a number alone, from which different answers count as looked up."""
SHOWN_VALUES: Final = 3

_Lookup = tuple[int, frozenset[str], frozenset[str]]
_SLOT: Final = "NAME|NUMBER|DATE|ADDRESS|EMAIL|PHONE|COMPANY|ID|LINK|URL"
_PLACEHOLDER: Final = re.compile(
    r"\b(?:TODO|TBD|FIXME|XXX+)\b|(?i:\blorem ipsum\b)"
    r"|(?i:\[(?:insert|your|add|name|company|date|link|url)\b[^\[\]]{0,40}\](?!\())"
    rf"|\[(?:[A-Z][a-z]+(?: [A-Za-z]+){{0,2}} (?i:{_SLOT})|[A-Z]+(?:[_ ][A-Z]+)+|{_SLOT})\](?!\()"
    r"|\{\{[^{}]{1,60}\}\}|(?<!\{)\{[a-z]+(?:_[a-z]+)+\}|<(?:insert|your|name|company)\b[^<>]{0,40}>"
    rf"|<(?:[A-Z]+_)*(?:{_SLOT})>"
)
_HTML: Final = re.compile(
    r"</?(?:p|br|div|span|a|b|i|em|strong|ul|ol|li|table|tr|td|th|h[1-6]|img)\b[^<>]{0,200}>|&(?:nbsp|amp|lt|gt|quot|#\d{1,5});"
)
_SENTENCE_END: Final = re.compile(r"[.!?…:;。！？」』)\]}>\"'”’`*_|~]\s*$|[\U0001F300-\U0001FAFF☀-➿]\ufe0f?\s*$")
_MONTH: Final = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_WEEKDAY: Final = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b", re.IGNORECASE)
_VALUE: Final = re.compile(
    r"[$€£¥₹]\s?\d[\d.,]*\d|[$€£¥₹]\s?\d"
    r"|\b\d[\d.,]*\s?(?:USD|EUR|GBP|CHF|SEK|NOK|DKK|PLN|CAD|AUD|INR|JPY|kr|zł|Kč|Ft|dollars?|euros?|pounds?|yen|rupees?)\b"
    r"|\b\d[\d.,]*\s?[€£$]|\b\d{1,3}(?:[.,]\d)?\s?% (?:off|discount|cheaper|reduction)\b"
    r"|\b\d{1,6} (?:\w+ ){0,2}(?:in stock|left|available|remaining)\b|\b[Ss]tock(?: is|:) ?\d+\b"
    r"|\b\d{1,2}(?:[:.]\d\d)?\s?(?:[ap]m|[ap]\.m\.|Uhr|o'clock)(?!\w)|\b[012]?\d:[0-5]\d\b"
    r"|\b\d{4}-\d\d-\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    r"|\bv?\d{1,3}(?:\.\d{1,5}){2,3}\b(?!\.?\d)|\b(?:[Vv]ersion|[Ff]irmware) v?\d+(?:\.\d+)+|\bv\d+\.\d+\b"
    r"|(?<![\d.,:/-])\d{1,6}[.,]\d\d(?![\d%]|[.,:/-]\d|\s?(?:[kcm]?m|k?g|m?l|cm|inch(?:es)?|hours?|points?)\b)"
    rf"|{_WEEKDAY.pattern}"
    rf"|\b{_MONTH}\.? \d{{1,2}}\b|\b\d{{1,2}}\.? {_MONTH}\b"
    r"|\b[A-Z]{1,5}-?\d{3,}\b|(?<![\d.,-])\d{5,}(?![\d.,-]*\d)"
)
"""Amounts of money, also without a currency, discounts, stock, times of day, weekdays, dates, versions, identifiers."""
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME: Final = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]{{0,6}}\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d[\d.,]*")
_DIGITS: Final = re.compile(r"\d+")
_NO_CENTS: Final = re.compile(r"[.,]00?$")
_DATE: Final = re.compile(rf"\d[-./]\d+[-./]\d|{_MONTH}")
_CALCULATION: Final = re.compile(r"\d\s*[=×*/+]\s*[$€£¥]?\d")
"""What an answer works out is no fact that it remembers."""
_PUNCTUATION: Final = re.compile(r"(?<![^\w\s])[^\w\s]++(?=\s|$)|(?<!\S)[^\w\s]++")
_IDENTIFIER: Final = re.compile(r"\b[a-z]{0,5}[-#]?\d{3,}\b")
_NAME: Final = re.compile(r"\b[A-Z][\w&'’-]+(?: (?:of |and |& )?[A-Z][\w&'’-]+)+|\b[A-Z]{2,6}\b(?!-?\d)")
"""Words in a row with capitals, and abbreviations: single ones begin sentences, and are every noun in German."""
_WORD: Final = re.compile(r"[^\W\d_]+")


def answer_faults(examples: Sequence[Example]) -> list[Finding]:
    """Findings about placeholders, refusals, broken characters, leftover HTML, repeated questions and cut answers."""
    tests: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
        ("placeholders", "answers have a placeholder that nobody filled in", lambda text: _found(_PLACEHOLDER, text)),
        ("refusals", "answers refuse: the model learns to refuse, also where it should not", refuses),
        ("broken_characters", "answers have broken characters (text decoded with the wrong encoding)", _is_broken),
    )
    findings = []
    examples = _prose(examples)
    for code, message, test in tests:
        lines = [example.line for example in examples if test(answer(example))]
        if lines:
            findings.append(finding(code, f"{len(lines)} {message}", lines))
    return [*findings, *_html(examples), *_repeated_questions(examples), *_cut(examples)]


def _prose(examples: Sequence[Example]) -> list[Example]:
    """The examples whose answer is a text: a tool call is checked by its form alone."""
    return [example for example in examples if not example.judged.tool_calls]


def _found(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.search(text) is not None


def _is_broken(text: str) -> bool:
    return "\ufffd" in text or (not text.isascii() and bool(is_bad(text)))


def _html(examples: Sequence[Example]) -> Iterator[Finding]:
    lines = [example.line for example in examples if _found(_HTML, answer(example))]
    if 0 < len(lines) < HTML_BY_DESIGN * len(examples):
        yield finding(
            "leftover_html", f"{counted(len(lines), 'answer has', 'answers have')} HTML, the others do not", lines
        )


def _repeated_questions(examples: Sequence[Example]) -> Iterator[Finding]:
    lines = [example.line for example in examples if _wording(answer(example)) == _wording(question(example))]
    if lines:
        yield finding(
            "repeated_questions",
            f"{counted(len(lines), 'answer only repeats', 'answers only repeat')} the question",
            lines,
        )


def _wording(text: str) -> str:
    """The text without what an echo may change: case, white space, and punctuation around words."""
    normalised = normalise(text)
    return _PUNCTUATION.sub("", normalised) or normalised


def _cut(examples: Sequence[Example]) -> Iterator[Finding]:
    prose = [example for example in examples if len(answer(example)) >= MIN_PROSE_CHARS]
    lines = [example.line for example in prose if not _found(_SENTENCE_END, answer(example)[-20:])]
    if len(prose) >= MIN_PROSE_ANSWERS and 0 < len(lines) <= (1 - ENDS_IN_PUNCTUATION) * len(prose):
        ends = "answer ends within a sentence: was it cut?", "answers end within a sentence: were they cut?"
        yield finding("cut_answers", counted(len(lines), *ends), lines)


def changing_facts(examples: Sequence[Example]) -> list[Finding]:
    """A finding if answers state facts that their question does not give: amounts, dates, identifiers and the like
    (_VALUE), or different answers about different identifiers, in whatever words they are asked for. What stands in the
    prompt (retrieved passages) does not count.
    """
    stated: dict[int, str] = {}
    examples = _prose(examples)
    for example in examples:
        prompt = "\n".join(message.text for message in example.prompt)
        values = [match[0] for match in _VALUE.finditer(answer(example)) if match[0] not in prompt]
        new = _not_given(values, prompt) if values else []
        if new and not _found(_CALCULATION, answer(example)):
            stated[example.line] = new[0]
    for line in (*_looked_up(examples), *_looked_up_by_name(examples)):
        stated.setdefault(line, "")
    if len(stated) < max(MIN_FACTS, FACTS_SHARE * len(examples)):
        return []
    values = list(dict.fromkeys(value for value in stated.values() if value))[:SHOWN_VALUES]
    shown = f", such as {', '.join(map(repr, values))}" if values else ""
    message = (
        f"{len(stated)} answers state facts that their question does not give{shown}. A trained model goes on stating "
        "them after they have changed, and invents others: put them into a vector store, and train on answers to "
        "retrieved passages"
    )
    return [finding("changing_facts", message, stated)]


def _not_given(values: Sequence[str], prompt: str) -> list[str]:
    """The values that do not stand in the prompt in another spelling either: *3 March 2024* gives 2024-03-03."""
    amounts, parts = _amounts(prompt), _date_parts(prompt)
    return [
        value
        for value in values
        if not (
            value.lower() in prompt.lower()
            if _WEEKDAY.fullmatch(value)
            else _date_parts(value) <= parts
            if _DATE.search(value)
            else _amounts(value) <= amounts
        )
    ]


def _amounts(text: str) -> set[str]:
    return {_canonical(match[0]) for match in _NUMBER.finditer(text)}


def _date_parts(text: str) -> set[str]:
    """Each number of its own, and the months by their numbers."""
    months = {str(_MONTHS.index(match[1].lower()) + 1) for match in _MONTH_NAME.finditer(text)}
    return {_canonical(match[0]) for match in _DIGITS.finditer(text)} | months


def _canonical(number: str) -> str:
    """A number's digits without leading zeros, separators and cents that are nil."""
    return re.sub(r"\D", "", _NO_CENTS.sub("", number.rstrip(".,"))).lstrip("0") or "0"


def _looked_up(examples: Sequence[Example]) -> Iterator[int]:
    """Lines whose question is another one's but for an identifier, and whose answer is a different one."""
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for example in examples:
        text = normalise(question(example))
        masked = _IDENTIFIER.sub("#", text)
        if masked != text:
            groups[masked].append((_IDENTIFIER.sub("#", normalise(answer(example))), example.line))
    for answers in groups.values():
        if len(answers) >= LOOKUP_GROUP and len({reply for reply, _ in answers}) > 1:
            yield from (line for _, line in answers)


def _looked_up_by_name(examples: Sequence[Example]) -> Iterator[int]:
    """Lines whose question is about an identifier and whose answer is a name, or is short, where questions in similar
    words have no more of their answers in common than any two: then the identifier decides, whatever the wording."""
    lookups = [lookup for lookup in map(_lookup, examples) if lookup is not None]
    signed = Counter(name for _, _, names in lookups for name in names)
    signatures = {name for name, count in signed.items() if count > SIGNATURE * len(lookups)}
    given = [(line, words, names - signatures) for line, words, names in lookups if names - signatures]
    if len(given) < max(MIN_LOOKUPS, len(lookups) / 2):
        return
    compared = given[:: -(-len(given) // MAX_COMPARED)]
    times = Counter(names for _, _, names in compared)
    chance = sum(count * (count - 1) for count in times.values()) / (len(compared) * (len(compared) - 1))
    if len(times) > 1 and _agreement(compared) - chance < EXPLAINED * (1 - chance):
        yield from (line for line, _, _ in given)


def _lookup(example: Example) -> _Lookup | None:
    """The line, the question's words, and the names in the answer, or all of a short one but for its numbers, which may
    be worked out; None if the question has no identifier."""
    text = normalise(question(example))
    masked = _IDENTIFIER.sub(" ", text)
    if masked == text:
        return None
    reply = answer(example).strip()
    if len(reply) <= MAX_SHORT_CHARS:
        names = {_DIGITS.sub("#", normalise(reply))} if _WORD.search(reply) else set()
    else:
        prompt = normalise("\n".join(message.text for message in example.prompt))
        names = {match[0] for match in _NAME.finditer(reply) if normalise(match[0]) not in prompt}
    return example.line, frozenset(_WORD.findall(masked)), frozenset(names)


def _agreement(lookups: Sequence[_Lookup]) -> float:
    """The share of the questions whose answer is the one that is most frequent among the questions nearest in words."""
    agreeing = 0.0
    for at, (_, words, names) in enumerate(lookups):
        others = [
            (len(words & other) / max(1, len(words | other)), answered)
            for number, (_, other, answered) in enumerate(lookups)
            if number != at
        ]
        nearest = max(similarity for similarity, _ in others)
        answers = [answered for similarity, answered in others if similarity == nearest]
        agreeing += answers.count(names) / len(answers)
    return agreeing / len(lookups)
