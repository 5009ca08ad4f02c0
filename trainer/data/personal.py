"""Detects personal data and secrets in a text, which an adapter must not memorise.

Secrets are found by Yelp's detect-secrets (its pattern detectors; the entropy detectors mistake prose for keys), and
by the patterns in _SECRETS, which it does not have. Personal data are e-mail addresses, telephone numbers that are
valid in a numbering plan (without a country code, American, British and French ones as they are usually written, and
those of _REGIONS if they are called telephone numbers), card numbers of an issuer's form, bank account, social security
and NHS numbers whose digits are valid, and what is called a passport's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import phonenumbers
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.high_entropy_strings import HighEntropyStringsPlugin
from detect_secrets.plugins.keyword import KeywordDetector
from stdnum import iban, luhn
from stdnum.gb import nhs
from stdnum.us import ssn

PIECE_CHARS: Final = 4000
PIECE_OVERLAP: Final = 1000
"""Longer than any secret."""
_DIGIT: Final = re.compile(r"\d")
_EMAIL: Final = re.compile(
    r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
)
_PHONE: Final = re.compile(r"(?<![\w.+-])\+\d{1,3}[ ()./-]{0,2}(?:\d[ ()./-]{0,2}){7,12}(?![\w-])")
_CARD: Final = re.compile(r"(?<![\w-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_ISSUER: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|(?:6011|64[4-9]\d|65\d\d|62\d\d)\d{12,15}"
    r"|(?:50|5[6-9]|6\d)\d{14}"
)
"""Visa, Mastercard, American Express, Diners Club, JCB, Discover, UnionPay and Maestro. ISBNs and times in milliseconds
begin in other ways."""
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_NO_PHONE: Final = (
    r"(?i:\b(?:order|ticket|invoice|booking|reference|ref|tracking|account|customer|part|serial|isbn|nhs|sku|id)\b)"
)
"""What a number in groups is instead, if it is called so."""
_LOCAL_PHONE: Final = (
    ("US", re.compile(r"(?<![\w.+-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])")),
    (
        "US",
        re.compile(
            rf"(?:{_NO_PHONE}[^\d\n]{{0,15}}\d[\d ]*|(?<![\w.+-])(?<!\d )(?P<number>[2-9]\d\d [2-9]\d\d \d{{4}}))"
            r"(?![\w-])(?! \d)"
        ),
    ),
    ("FR", re.compile(r"(?<![\w.+-])(?<!\d )0[1-9]([ .])\d\d(?:\1\d\d){3}(?![\w-])(?![ .]\d)")),
    ("GB", re.compile(r"(?<![\w.+-])\(?0(?:\d{2}\)? \d{4} \d{4}|\d{3}\)? \d{3} \d{4}|\d{4}\)? \d{6})(?![\w-])")),
)
"""By the region in whose numbering plan the number must be valid."""
_LABELLED_PHONE: Final = re.compile(
    r"(?i:\b(?:tel|telephone|telefon|téléphone|teléfono|phone|mobile|cell|handy|whatsapp|fax)\b)"
    r"(?i: (?:number|no|nr)\b)?(?i: is\b)?[\s.:#]{1,3}(\(?\d(?:[ ()./-]{0,2}\d){6,13})(?![\w-])"
)
_REGIONS: Final = ("US", "GB", "IE", "DE", "AT", "CH", "FR", "BE", "NL", "ES", "IT", "PL", "SE", "AU", "NZ", "IN")
_SSN: Final = re.compile(
    r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"
    r"|(?i:\bSSN|\bsocial security (?:number|no))\b[^\d\n]{0,15}\d{3} ?\d{2} ?\d{4}(?![\w-])"
)
_NHS: Final = re.compile(r"(?i:\bNHS\b)\D{0,40}(\d{3}[ -]?\d{3}[ -]?\d{4})(?![\w-])")
_PASSPORT: Final = re.compile(
    r"(?i:\bpassport\b(?: ?(?:no|nr|num)\.)?)"
    r"(?:(?!(?i:order|ticket|invoice|booking|reference|tracking))[^.!?\n]){0,40}?"
    r"\b(?!(?:19|20)\d\d[01]\d[0-3]\d\b)(?=[A-Z0-9]{8,9}\b)(?=(?:[A-Z]*\d){6})[A-Z]{0,3}\d[A-Z0-9]{5,8}\b"
)
_SECRETS: Final = (
    (
        "API Key",
        re.compile(
            r"\bsk-(?=[\w-]{0,99}\d)(?=[\w-]{0,99}[A-Za-z])(?:[a-z0-9]{2,10}-){0,2}(?=\w{16})[\w-]{20,}"
            r"|(?i:\bapi[_ -]?key)[\"']?(?: is|\s*[:=])\s*[\"'`]?(?=\S{0,99}\d)(?=\S{0,99}[A-Za-z])[\w-]{16,}"
            r"|\bAIza[\w-]{35}(?![\w-])"
        ),
    ),
    ("Hugging Face Token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ("Bearer Token", re.compile(r"(?i:\bbearer) +(?=\S{0,99}\d)[A-Za-z0-9._~+/-]{20,}")),
    (
        "Password",
        re.compile(
            r"(?i:\b(?:password|passwd|passphrase|passwort|kennwort|pwd)[\"'`]?(?: is| ist|\s*[:=])"
            r"|\b(?:pass|pw)\s*[:=])"
            r" *[\"'`]?(?![<{\[$*])(?=\S{0,99}[A-Za-z])(?=\S{0,99}(?:\d|[!@#$%^&*?]\w))[^\s\"'`]{6,}"
            r"|(?i:\bpass(?:word|wort) [\"'`]?(?!windows|office|iphone|version|wordpress))"
            r"(?=[a-zA-Z]{3})[\w!@#$%^&*]{2,40}\d"
            r"(?<=[\w!@#$%^&*]{7})[!@#$%^&*]{0,5}(?![\w-])"
        ),
    ),
)
"""What detect-secrets has no detector for. Lookaheads are bounded: they may begin anywhere in a long text."""
_RESERVED: Final = re.compile(
    r"@(?:[\w-]+\.)*example(?:\.(?:com|net|org))?$|\.(?:test|invalid|example)$", re.IGNORECASE
)
"""Domains reserved for examples (RFC 2606)."""


class PersonalDataDetector:
    """Finds personal data and secrets. Create one per file: building the detectors is slow."""

    def __init__(self) -> None:
        kinds = get_mapping_from_secret_type_to_class().values()
        self._secrets: list[BasePlugin] = [
            kind() for kind in kinds if not issubclass(kind, (HighEntropyStringsPlugin, KeywordDetector))
        ]

    def find(self, text: str) -> set[str]:
        """The kinds of personal data and secrets in `text` (`email`, `AWS Access Key`), not their values."""
        detectors = _PERSONAL if _DIGIT.search(text) else _WITHOUT_DIGITS
        kinds = {kind for kind, present in detectors if present(text)}
        kinds |= {kind for kind, pattern in _SECRETS if pattern.search(text)}
        for line in text.splitlines():
            for piece in _pieces(line):
                kinds |= {plugin.secret_type for plugin in self._secrets if _any(plugin.analyze_string(piece))}
        return kinds


def _pieces(line: str) -> Iterator[str]:
    """The line in overlapping pieces: some of detect-secrets' patterns take time that grows with a line's square."""
    for start in range(0, max(1, len(line) - PIECE_OVERLAP), PIECE_CHARS - PIECE_OVERLAP):
        yield line[start : start + PIECE_CHARS]


def _any(values: Iterable[object]) -> bool:
    return next(iter(values), None) is not None


def has_email(text: str) -> bool:
    """Whether the text has an e-mail address outside the reserved domains."""
    return any(not _RESERVED.search(match[0]) for match in _EMAIL.finditer(text))


def has_phone(text: str) -> bool:
    """Whether the text has a valid telephone number: in international form, as an American, British or French one is
    written at home, or called a telephone number and valid in one of _REGIONS. Any other would give too many false
    positives.
    """
    local = (
        (match.groupdict().get("number", match[0]) or "", region)
        for region, pattern in _LOCAL_PHONE
        for match in pattern.finditer(text)
    )
    international = ((match[0], None) for match in _PHONE.finditer(text))
    labelled = ((match[1], region) for match in _LABELLED_PHONE.finditer(text) for region in _REGIONS)
    return any(_is_phone(number, region) for number, region in (*international, *local, *labelled))


def has_card(text: str) -> bool:
    """Whether the text has a payment card number: an issuer's prefix and length, and a correct Luhn check digit."""
    return any(_is_card(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text))


def has_iban(text: str) -> bool:
    """Whether the text has a valid IBAN of its country's form."""
    return any(_is_iban(match[0]) for match in _IBAN.finditer(text))


def has_identity_number(text: str) -> bool:
    """Whether the text has an American social security number, a British NHS number, or what it calls a passport's."""
    return (
        any(ssn.is_valid(re.sub(r"\D", "", match[0])) for match in _SSN.finditer(text))
        or any(nhs.is_valid(match[1]) for match in _NHS.finditer(text))
        or _PASSPORT.search(text) is not None
    )


_WITHOUT_DIGITS: Final = (("email", has_email),)
_PERSONAL: Final = (
    *_WITHOUT_DIGITS,
    ("telephone number", has_phone),
    ("card number", has_card),
    ("bank account", has_iban),
    ("identity number", has_identity_number),
)


def _is_phone(text: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def _is_card(digits: str) -> bool:
    return len(set(digits)) > 1 and _ISSUER.fullmatch(digits) is not None and bool(luhn.is_valid(digits))


def _is_iban(text: str) -> bool:
    # the words after the number may look like a part of it
    words = text.split(" ")
    return any(iban.is_valid("".join(words[:length])) for length in range(1, len(words) + 1))
