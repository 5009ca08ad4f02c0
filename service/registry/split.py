"""Splits: an alias that points to several versions at once, each with its share of the requests.

A request has a position in [0, 1), and the versions' shares lie side by side on that line, in the order of their
numbers: whichever share the position falls into answers. Without an id of the caller's the position is drawn anew for
each request; with one it is a hash of the id, so that one user keeps one version. When weight moves from one version to
the next, only the positions between the old and the new border move, and as a newer version grows at an older one's
cost nobody goes back to the older. (With two versions no rule moves fewer; with more, weights that change at several
borders at once move more than the least possible.)

The line is made of the 2⁶⁴ values of a 64-bit hash, and all arithmetic is in whole numbers.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from adapters.errors import AdapterError
from adapters.names import parse_version
from service.errors import BadRequest

MIN_VERSIONS: Final = 2
MAX_VERSIONS: Final = 8
MAX_TOTAL: Final = 1_000_000
"""Largest sum of the weights: a share of a millionth is the smallest."""

_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the requests: (version, weight) in the order of the versions' numbers, 2 to 8 of them.

    The weights are positive; a version's share is its weight over their sum.
    """

    weights: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, weights: Mapping[int, int]) -> Split:
        """A split with these weights by version, which must be valid."""
        return cls(tuple(sorted(weights.items())))

    @property
    def versions(self) -> tuple[int, ...]:
        """The version numbers, ascending."""
        return tuple(version for version, _ in self.weights)

    def at(self, position: int) -> int:
        """The version whose share holds ``position`` / 2⁶⁴, where 0 ≤ ``position`` < 2⁶⁴."""
        rest = position * sum(weight for _, weight in self.weights) >> _BITS
        for version, weight in self.weights[:-1]:
            if rest < weight:
                return version
            rest -= weight
        return self.weights[-1][0]

    def shown(self) -> dict[str, int]:
        """The weights by version, in the form of the API and the database."""
        return {str(version): weight for version, weight in self.weights}


AliasTarget: TypeAlias = int | Split
"""What an alias points to: a version's number, or a split over several."""


def versions_of(target: AliasTarget) -> tuple[int, ...]:
    """All versions that an alias with this target may resolve to."""
    return (target,) if isinstance(target, int) else target.versions


def share_of(target: AliasTarget, position: int) -> int:
    """The version for a request at ``position`` (see :func:`position_of`)."""
    return target if isinstance(target, int) else target.at(position)


def position_of(project: str, name: str, alias: str, sticky: str | None) -> int:
    """A request's position, 0 to 2⁶⁴ − 1: a hash of the arguments, or random if ``sticky`` is None.

    The first 64 bits of BLAKE2b: the same in every process and after every restart.
    """
    if sticky is None:
        return secrets.randbits(_BITS)
    # no project, name or alias holds a NUL, and the caller's own text comes last: no two inputs read the same
    text = "\0".join((project, name, alias, sticky)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=_BITS // 8).digest(), "big")


def parse_split(given: Mapping[str, int]) -> Split:
    """The split in a request's body: a weight for each version number.

    Raises:
        BadRequest: Too few or too many versions, something that is no version's number, or a weight out of bounds.
    """
    if not MIN_VERSIONS <= len(given) <= MAX_VERSIONS:
        raise BadRequest(
            f"`split` must have {MIN_VERSIONS} to {MAX_VERSIONS} versions; got {len(given)}. "
            "To point the alias to a single version, send `version`",
            param="split",
        )
    weights: dict[int, int] = {}
    for text, weight in given.items():
        try:
            version = parse_version(text)
        except AdapterError as error:
            raise BadRequest(f"`split`: {error.message}", param="split") from None
        if not 1 <= weight <= MAX_TOTAL:
            raise BadRequest(
                f"`split.{version}` must be an integer from 1 to {MAX_TOTAL}; got {weight}",
                param=f"split.{version}",
            )
        weights[version] = weight
    if sum(weights.values()) > MAX_TOTAL:
        raise BadRequest(
            f"the weights of `split` must add up to at most {MAX_TOTAL}; got {sum(weights.values())}", param="split"
        )
    return Split.of(weights)


def stored_split(weights: Mapping[str, int]) -> Split:
    """The inverse of :meth:`Split.shown`."""
    return Split.of({int(version): weight for version, weight in weights.items()})
