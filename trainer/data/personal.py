"""Detects personal data and secrets in a text, which an adapter must not memorise.

Secrets are found by Yelp's detect-secrets (its pattern detectors; the entropy detectors mistake prose for keys), and
by the patterns in _SECRETS, which it does not have. Personal data are e-mail addresses, telephone numbers that are
valid in a numbering plan (American and British ones also without a country code, as they are usually written), card,
bank account, social security and NHS numbers whose digits are valid, and what is called a passport's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import phonenumbers
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.high_entropy_strings import HighEntropyStringsPlugin
from detect_secrets.plugins.keyword import KeywordDetector
from stdnum import iban, luhn
from stdnum.gb import nhs
from stdnum.us import ssn

_EMAIL: Final = re.compile(
    r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
)
_PHONE: Final = re.compile(r"(?<![\w.+-])\+\d{1,3}[ ()./-]{0,2}(?:\d[ ()./-]{0,2}){7,12}(?![\w-])")
_CARD: Final = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_LOCAL_PHONE: Final = (
    ("US", re.compile(r"(?<![\w.+-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])")),
    ("GB", re.compile(r"(?<![\w.+-])\(?0(?:\d{2}\)? \d{4} \d{4}|\d{3}\)? \d{3} \d{4}|\d{4}\)? \d{6})(?![\w-])")),
)
"""By the region in whose numbering plan the number must be valid."""
_SSN: Final = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_NHS: Final = re.compile(r"(?i:\bNHS\b)\D{0,40}(\d{3}[ -]?\d{3}[ -]?\d{4})(?![\w-])")
_PASSPORT: Final = re.compile(
    r"(?i:\bpassport\b)[^.!?\n]{0,40}?\b(?=[A-Z0-9]{8,9}\b)(?=(?:[A-Z]*\d){6})[A-Z]{0,3}\d[A-Z0-9]{5,8}\b"
)
_SECRETS: Final = (
    ("API Key", re.compile(r"\bsk-(?:[a-z]{2,10}-)?[A-Za-z0-9_-]{20,}")),
    ("Hugging Face Token", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ("Bearer Token", re.compile(r"\b[Bb]earer +[A-Za-z0-9._~+/-]{20,}")),
    ("Password", re.compile(r"(?i:\bpassword)(?: is|:|=) *[\"'`]?(?=\S*[0-9!@#$%^&*?_])(?=\S*[A-Za-z])[^\s\"'`]{6,}")),
)
"""What detect-secrets has no detector for."""
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
        kinds = {kind for kind, present in _PERSONAL if present(text)}
        kinds |= {kind for kind, pattern in _SECRETS if pattern.search(text)}
        for line in text.splitlines():
            kinds |= {plugin.secret_type for plugin in self._secrets if _any(plugin.analyze_string(line))}
        return kinds


def _any(values: Iterable[object]) -> bool:
    return next(iter(values), None) is not None


def has_email(text: str) -> bool:
    """Whether the text has an e-mail address outside the reserved domains."""
    return any(not _RESERVED.search(match[0]) for match in _EMAIL.finditer(text))


def has_phone(text: str) -> bool:
    """Whether the text has a valid telephone number: in international form, or as an American or British one is written
    at home. Other countries' numbers without their code would give too many false positives."""
    local = ((match[0], region) for region, pattern in _LOCAL_PHONE for match in pattern.finditer(text))
    international = ((match[0], None) for match in _PHONE.finditer(text))
    return any(_is_phone(number, region) for number, region in (*international, *local))


def has_card(text: str) -> bool:
    """Whether the text has a payment card number: 13 to 19 digits with a correct Luhn check digit."""
    return any(_is_card(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text))


def has_iban(text: str) -> bool:
    """Whether the text has a valid IBAN of its country's form."""
    return any(_is_iban(match[0]) for match in _IBAN.finditer(text))


def has_identity_number(text: str) -> bool:
    """Whether the text has an American social security number, a British NHS number, or what it calls a passport's."""
    return (
        any(ssn.is_valid(match[0]) for match in _SSN.finditer(text))
        or any(nhs.is_valid(match[1]) for match in _NHS.finditer(text))
        or _PASSPORT.search(text) is not None
    )


_PERSONAL: Final = (
    ("email", has_email),
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
    return len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def _is_iban(text: str) -> bool:
    # the words after the number may look like a part of it
    words = text.split(" ")
    return any(iban.is_valid("".join(words[:length])) for length in range(1, len(words) + 1))
