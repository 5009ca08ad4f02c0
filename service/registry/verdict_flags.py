"""What the verdicts of a version say together, as SQL over the verdict in a query: failed, unconfirmed, or neither.

A revalidation that was compared with an earlier verdict says by itself whether that one ``holds``. Where it cannot
tell, it is *inconclusive*, and everything here looks past it. One that was compared with none (there are no scores of
the earlier verdict) is judged by its word alone.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from service.registry.tables import verdicts

REVALIDATION: Final = "revalidation"
PASSED: Final = "pass"
FAIL: Final = "fail"


def is_failed() -> sa.ColumnElement[bool]:
    """Whether the latest revalidation of a verdict's version failed it.

    Where a revalidation that was compared with no earlier verdict found no pass, but no failure either, what was found
    before it decides: a version that had passed has lost what it went live for, and is failed until a revalidation
    passes; one that had not has lost nothing. Nor has one whose pass was of an older rule: a stricter one asks for what
    was never shown.
    """
    mine = _revalidations("lasts")
    last = sa.select(mine.c.verdict).where(mine.c.version_id == verdicts.c.version_id).order_by(mine.c.seq.desc())
    failing = last.limit(1).correlate(verdicts).scalar_subquery() == FAIL
    return sa.func.coalesce(failing, sa.false()) | _lost_its_pass()


def is_unconfirmed() -> sa.ColumnElement[bool]:
    """Whether a pass of an older rule could not be shown again by a newer one, and no verdict was a pass since."""
    unshown, since = _revalidations("unshown"), verdicts.alias("passed_since")
    return (
        sa.exists()
        .where(
            unshown.c.version_id == verdicts.c.version_id,
            unshown.c.compared_with.is_(None),
            unshown.c.verdict.not_in((PASSED, FAIL)),
            _previous(unshown, "befores_of_unshown", verdicts.c.verdict) == PASSED,
            _previous(unshown, "rules_of_unshown", verdicts.c.rule) < unshown.c.rule,
            ~_passed_after(unshown, since),
        )
        .correlate(verdicts)
    )


def conclusive_base() -> sa.ScalarSelect[Any]:
    """The fingerprint of the base at the latest verdict of a verdict's version that is not inconclusive."""
    conclusive = verdicts.alias("conclusive")
    return (
        sa.select(conclusive.c.base)
        .where(conclusive.c.version_id == verdicts.c.version_id, is_conclusive(conclusive))
        .order_by(conclusive.c.seq.desc())
        .limit(1)
        .correlate(verdicts)
        .scalar_subquery()
    )


def _lost_its_pass() -> sa.ColumnElement[bool]:
    """Whether a revalidation found no pass where the verdict right before it was one, and none has passed since.

    A failure counts by whatever rule; what is not enough evidence, by the rule of the pass, and only without a
    comparison with the earlier scores.
    """
    lost, since = _revalidations("losses"), _revalidations("passes")
    same_rule = _previous(lost, "rules", verdicts.c.rule) >= lost.c.rule
    return (
        sa.exists()
        .where(
            lost.c.version_id == verdicts.c.version_id,
            lost.c.verdict != PASSED,
            _previous(lost, "befores", verdicts.c.verdict) == PASSED,
            sa.or_(lost.c.verdict == FAIL, sa.and_(lost.c.compared_with.is_(None), same_rule)),
            ~_passed_after(lost, since),
        )
        .correlate(verdicts)
    )


def _previous(of: sa.Subquery, name: str, column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
    """A column of the conclusive verdict right before ``of`` on the same version."""
    before = verdicts.alias(name)
    return (
        sa.select(before.c[column.name])
        .where(before.c.version_id == of.c.version_id, before.c.seq < of.c.seq, is_conclusive(before))
        .order_by(before.c.seq.desc())
        .limit(1)
        .correlate(of)
        .scalar_subquery()
    )


def _passed_after(of: sa.Subquery, since: sa.FromClause) -> sa.Exists:
    """Whether one of ``since`` is a later pass on the version of ``of``."""
    later = sa.exists().where(since.c.version_id == of.c.version_id, since.c.seq > of.c.seq, since.c.verdict == PASSED)
    return later.correlate(of)


def _revalidations(name: str) -> sa.Subquery:
    """All conclusive revalidations, under a name of their own within a query."""
    chosen = sa.select(
        verdicts.c.version_id, verdicts.c.seq, verdicts.c.verdict, verdicts.c.rule, verdicts.c.compared_with
    )
    return chosen.where(verdicts.c.kind == REVALIDATION, is_conclusive(verdicts)).correlate(None).subquery(name)


def is_conclusive(row: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether a verdict is of a kind that decides: every one but a comparison that shows nothing either way."""
    return sa.or_(row.c.compared_with.is_(None), row.c.holds.is_not(None))
