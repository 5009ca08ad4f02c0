"""EVALUATION.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from trainer.evaluate.forgetting import WORD_ORDER_SHARE
from trainer.evaluate.metrics.choose import NAMES
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import Rules

TEXT = " ".join(Path("trainer/evaluate/EVALUATION.md").read_text().split())


def test_the_rule_has_the_settings_defaults() -> None:
    rules = Rules()
    assert f"at least {rules.min_examples} held-out examples" in TEXT
    assert f"lower end of the interval above {100 * rules.smallest_difference:g} points" in TEXT
    assert f"the confidence ({100 * rules.method.confidence:g}%, two-sided)" in TEXT
    exact, overlap, meaning = (100 * rules.margin(name) for name in ("exact_match", "rouge_l", "similarity"))
    margins = f"{exact:g} points (−{overlap:g} for overlap metrics, −{meaning:g} for `similarity`)"
    assert f"lower end above −{margins}" in TEXT
    assert f"with {100 * rules.method.power:g}% power" in TEXT
    assert f"Tango's interval | {100 * rules.budget.accuracy:g} points |" in TEXT
    assert f"Tango's interval | {100 * rules.budget.chat:g} points |" in TEXT
    assert rules.budget.perplexity is None
    assert f"{100 * WORD_ORDER_SHARE:g}% of what the order of the words tells the base" in TEXT


def test_the_stated_share_is_what_the_confidence_leaves_out_on_one_side() -> None:
    assert f"at most {100 * (1 - IntervalMethod().confidence) / 2:g}% of comparisons of equal arms pass" in TEXT


def test_the_suite_is_as_large_as_is_said() -> None:
    suite = general_suite()
    assert f"{len(suite.choices)} multiple-choice items in plain text" in TEXT
    assert f"{len(suite.chats)} in a chat" in TEXT
    assert f"{len(suite.texts)} short texts in ten registers" in TEXT
    assert len({item.area for item in suite.texts}) == 10


def test_the_document_lists_existing_metrics() -> None:
    for name in ("exact_match", "json_exact", "similarity", "rouge_l", "token_f1", "contains", "regex"):
        assert f"`{name}`" in TEXT
        assert name in NAMES
