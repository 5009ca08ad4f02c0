"""What tests of judges share: an agreement with people that counts, and how a pair is shown."""

from __future__ import annotations

import re
from typing import Final

from trainer.evaluate.endpoints import JudgeSettings
from trainer.evaluate.pairs import JudgeAgreement

SHOWN: Final = re.compile(r"<answer_A-(\w+)>\n(.*?)\n</answer_A-\1>\n\n<answer_B-\1>\n(.*?)\n</answer_B-\1>", re.DOTALL)
"""A pair in a judge's prompt: group 2 is answer A, group 3 answer B."""


def agreeing(settings: JudgeSettings) -> JudgeAgreement:
    """People agree with this judge, and it hardly leans: it counts."""
    return JudgeAgreement(
        digest=settings.digest,
        pairs=120,
        kappa=0.8,
        low=0.65,
        high=0.95,
        observed=0.9,
        lean=0.01,
        lean_low=-0.05,
        lean_high=0.07,
        confidence=0.98,
    )
