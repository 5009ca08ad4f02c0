"""Folds questions for comparison: two spellings of one question become the same text.

Folded are: case; width and other compatibility forms (Unicode NFKC); accents; invisible characters; letters of other
scripts and small capitals that look like Latin ones; punctuation of sentences; white space; repeated letters;
greetings before the question and thanks after it. Digits and signs of operators stay, so that "3 - 2" and "3 + 2" are
two questions.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SPACE: Final = re.compile(r"\s+")


def _pairs(table: str) -> dict[int, str]:
    """A translation table of pairs such as "аa", separated by spaces."""
    return {ord(pair[0]): pair[1:] for pair in table.split()}


# Lower-case letters only, as they are looked up after case folding; at most one letter of each script for each Latin
# letter, as far as possible, so that two words of one script stay two. The common part of Unicode's confusables.txt
# (UTS #39), and letters with strokes, which have no decomposition.
_LOOKALIKES: Final = (
    _pairs("аa вb сc ԁd еe ԍg нh һh іi јj кk ӏl мm пn оo рp ԛq гr ѕs тt ѵv ԝw хx уy")  # Cyrillic
    | _pairs("αa βb εe ηn ιi κk μu νv οo ρp τt υu χx γy ωw ζz")  # Greek
    | _pairs("օo սu ոn հh ցg յj")  # Armenian
    | _pairs("ᴀa ɑa ʙb ᴄc ᴅd ᴇe ꜰf ɡg ɢg ʜh ıi ɩi ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz")
    | _pairs("øo đd łl ħh ŧt æae œoe")
)
_CAPITALS: Final = _pairs("ΗH ΜM ΝN ΥY")  # Greek, whose lower case looks like other Latin letters
_GREEK: Final = re.compile("[\u0370-\u03ff]")
_LATIN: Final = re.compile("[A-Za-z]")
_ACCENTS: Final = re.compile("[\u0300-\u036f]+")
_APOSTROPHES: Final = dict.fromkeys(map(ord, "`\u2018\u2019\u02bc\u00b4\u2032\uff07"), "'")
_IGNORABLE: Final = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Unicode's Default_Ignorable_Code_Point (15.0, DerivedCoreProperties.txt), first and last of each range: characters
that show nothing where they are not supported, variation selectors and unassigned code points among them."""
_BLANK: Final = 0x2800
"""The empty braille pattern, which shows nothing although Unicode calls it a symbol."""

_MARKS: Final = re.escape(".,;:!?¡¿…\"'()[]{}«»„“”‚‹›。、،؟؛।॥「」『』【】·•—–")
"""Punctuation of sentences. Not "-", "/", "<" and the like, which are also operators."""
_AROUND_WORDS: Final = re.compile(rf"(?<!\w)[{_MARKS}]+|[{_MARKS}]+(?!\w)|(?<=[^\W\d])'(?=[^\W\d])")
_DASHES: Final = "-~ "
_BETWEEN: Final = re.compile(rf"(?<!\d)[\s{_MARKS}]+|[\s{_MARKS}]+(?!\d)")

_DOUBLE: Final = re.compile(r"([^\W\d_])\1+")
_TRIPLE: Final = re.compile(r"([^\W\d_])\1{2,}")
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_NUMERAL: Final = re.compile(r"\b(?:[ivxlcdm]{2,}|([^\W\d_])\1+)\b")
"""A word in which a repeated letter counts: "III", "AAA", sizes such as "XXXL"."""

_GAP: Final = r"[\s.,;!?…()~\-–—。、]"
_GAP_OR_COLON: Final = r"[\s.,;:!?…()~\-–—。、]"
_PLEASE: Final = r"please|pls|plz|kindly|bitte|por favor|per favore|s'il (?:vous|te) plait|svp"
_GREETINGS: Final = re.compile(
    rf"{_GAP}*(?:((?:hi+|hello+|hey+|hiya|howdy|greetings|hallo|hola|bonjour|salut|ciao|ola|moin|servus)"
    r"(?: (?:all|everyone|everybody|team|folks|guys|again|sir or madam|sir|madam|support|zusammen)(?!\w)"
    r"| there(?!'s| (?:is|are|was|were|has|have|had|seems?|should|might|may|will)(?!\w)))*"
    r"|good (?:morning|afternoon|evening|day)|dear (?:sir or madam|sirs?|madam|team|support|all)"
    r"|to whom it may concern|guten (?:morgen|tag|abend)|buen[oa]s (?:dias|tardes|noches)|bom dia|boa tarde"
    r"|buongiorno|buonasera|bonsoir|excuse me|i have a (?:quick )?question|(?:just )?(?:a )?quick question"
    rf"|{_PLEASE})(?![\w-]){_GAP_OR_COLON}*)+"
)
_CLOSINGS: Final = re.compile(
    rf"(?:{_GAP}+(?:(?:many )?thanks(?: (?:a lot|a million|so much|very much|in advance|again))*"
    r"|thank (?:you|u)(?: (?:so much|very much|in advance|again|kindly))*|thx|tnx|ty|tia|cheers"
    r"|(?:(?:kind|best|warm) )?regards|best wishes|yours (?:sincerely|faithfully)|have a (?:nice|good|great) day"
    r"|(?:vielen )?dank(?:e)?(?: (?:im voraus|schon|sehr))*|mit freundlichen grussen|merci(?: (?:beaucoup|d'avance))*"
    rf"|(?:muchas )?gracias|grazie(?: mille)?|obrigad[oa]|{_PLEASE})(?![\w-]))+{_GAP}*$"
)
_CLOSING_CHARS: Final = 160
"""Only so much of a text's end is searched for a closing."""
_MENTIONED_AFTER: Final = re.compile(
    r"a|about|an|and|are|for|in|into|is|mean(?:s|ing)?|not|of|or|phrase|pronounce|say(?:s|ing)?|spell(?:ing)?|than|the|to"
    r"|translate|without|with|words?"
)
"""Words after which "thanks" and the like, without punctuation in between, is what the question is about."""
_MENTIONED_BEFORE: Final = re.compile(r"in|and|or|versus|vs|mean(?:s|ing)?")
"""Words before which "hello" and the like, without punctuation in between, is what the question is about."""


class _Visible(dict[int, int | str | None]):
    """A translation table that drops invisible characters. Remembers what it has looked up."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        control = category == "Cc" and not chr(code).isspace()
        ignorable = code == _BLANK or any(first <= code <= last for first, last in _IGNORABLE)
        visible = None if category == "Cf" or control or ignorable else code
        self[code] = visible
        return visible


_VISIBLE: Final = _Visible(_APOSTROPHES)


def fold(question: str) -> str:
    """The question as words separated by single spaces, folded as the module describes.

    A text that has nothing but punctuation and greetings keeps them: otherwise all such texts would be one.
    """
    visible = question.translate(_VISIBLE)
    letters = visible.casefold() if visible.isascii() else _fold_letters(visible)
    text = _without_repeats(_SPACE.sub(" ", letters).strip(), _TRIPLE)
    return _words(_content(text)) or _words(text) or text


def key(folded: str) -> str:
    """What two folded questions have in common if they are the same: the text without spaces and punctuation, except
    between digits, and without double letters."""
    if _NUMERAL.search(folded) is not None:
        folded = _without_repeats(folded, _DOUBLE)
        return _BETWEEN.sub("", folded) or folded
    return _DOUBLE.sub(r"\1", _BETWEEN.sub("", folded)) or folded


def squeezed(folded: str) -> str:
    """A folded text without spaces, punctuation and repeated letters: a text that quotes another one contains its."""
    return _DOUBLE.sub(r"\1", _BETWEEN.sub("", folded))


def _fold_letters(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    if len(_LATIN.findall(text)) > len(_GREEK.findall(text)):  # not in Greek, where upper and lower case are the same
        text = text.translate(_CAPITALS)
    text = unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold())))
    return text.translate(_LOOKALIKES)


def _content(text: str) -> str:
    """The text without greetings and closings, unless they are what it is about ("How do I say thanks?").

    Of a text that is nothing but greetings the last stays.
    """
    closing = _CLOSINGS.search(text, max(0, len(text) - _CLOSING_CHARS))
    if closing is not None:
        before = text[: closing.start()]
        mentioned = before.endswith(":") or _MENTIONED_AFTER.fullmatch(before.rpartition(" ")[2])
        text = text if closing[0].startswith(" ") and mentioned else before
    greeting = _GREETINGS.match(text)
    if greeting is None:
        return text
    after = text[greeting.end() :]
    if greeting[0] == f"{greeting[1]} " and _MENTIONED_BEFORE.fullmatch(after.partition(" ")[0]):
        return text
    return after or greeting[1]


def _words(text: str) -> str:
    """The words, without the punctuation around them. Dashes at the edges go only if a space follows: "-5" stays."""
    text = _SPACE.sub(" ", _AROUND_WORDS.sub(lambda match: "" if match[0] == "'" else " ", text)).strip()
    inner = text.lstrip(_DASHES)
    text = inner if text[: len(text) - len(inner)].endswith(" ") else text
    inner = text.rstrip(_DASHES)
    return inner if text[len(inner) :].startswith(" ") else text


def _without_repeats(text: str, repeated: re.Pattern[str]) -> str:
    """The text with each repeated letter once, except in numerals."""
    if repeated.search(text) is None:
        return text
    return _LETTERS.sub(lambda match: match[0] if _NUMERAL.fullmatch(match[0]) else repeated.sub(r"\1", match[0]), text)
