"""Personal data and secrets in a text: what an adapter must not learn by heart.

Secrets are found by Yelp's detect-secrets (its pattern detectors; the entropy ones take prose for keys). Personal data
are e-mail addresses, telephone numbers, and card and bank account numbers whose check digits are right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.high_entropy_strings import HighEntropyStringsPlugin
from detect_secrets.plugins.keyword import KeywordDetector

_EMAIL: Final = re.compile(
    r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"
)
_PHONE: Final = re.compile(r"(?<![\w.+-])\+\d{1,3}[ ()./-]{0,2}(?:\d[ ()./-]{0,2}){7,12}(?![\w-])")
_CARD: Final = re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_RESERVED: Final = re.compile(
    r"@(?:[\w-]+\.)*example(?:\.(?:com|net|org))?$|\.(?:test|invalid|example)$", re.IGNORECASE
)
"""Addresses that can belong to nobody (RFC 2606)."""


class Finder:
    """Finds personal data and secrets; make one for a whole file, its detectors are built once."""

    def __init__(self) -> None:
        kinds = get_mapping_from_secret_type_to_class().values()
        self._secrets: list[BasePlugin] = [
            kind() for kind in kinds if not issubclass(kind, (HighEntropyStringsPlugin, KeywordDetector))
        ]

    def find(self, text: str) -> set[str]:
        """The kinds of personal data and secrets in `text` (`email`, `AWS Access Key`), never the thing itself."""
        found = {kind for kind, present in _PERSONAL if present(text)}
        for line in text.splitlines():
            found |= {plugin.secret_type for plugin in self._secrets if _any(plugin.analyze_string(line))}
        return found


def _any(values: Iterable[object]) -> bool:
    return next(iter(values), None) is not None


def has_email(text: str) -> bool:
    """An e-mail address that somebody could have."""
    return any(not _RESERVED.search(match[0]) for match in _EMAIL.finditer(text))


def has_phone(text: str) -> bool:
    """A telephone number in international form; without a country code too much else looks like one."""
    return _PHONE.search(text) is not None


def has_card(text: str) -> bool:
    """A payment card's number: 13 to 19 digits whose Luhn check digit is right."""
    return any(_luhn(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text))


def has_iban(text: str) -> bool:
    """A bank account's number whose check digits are right (ISO 7064, mod 97)."""
    return any(_mod97(match[0].replace(" ", "")) for match in _IBAN.finditer(text))


_PERSONAL: Final = (
    ("email", has_email),
    ("telephone number", has_phone),
    ("card number", has_card),
    ("bank account", has_iban),
)


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _mod97(iban: str) -> bool:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1
