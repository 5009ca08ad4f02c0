"""Asking a teacher through the gateway: forwarded as it is, unless the budget that its price counts for is spent."""

from __future__ import annotations

import pytest

from service.access.caller import Caller
from service.errors import QuotaSpent
from tests.unit.service.files.files_app import error_of
from tests.unit.service.training.training_gateway import TrainingGateway

BODY = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 7}


async def test_a_spent_budget_refuses_requests_to_teachers(
    gateway: TrainingGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.trainer.body = {"object": "chat.completion"}
    answered = await gateway.http.post("/v1/teachers/big", json=BODY)
    assert (answered.status_code, answered.json()) == (200, {"object": "chat.completion"})

    def spent(caller: Caller) -> None:
        raise QuotaSpent(f"the budget of {caller.project} is spent")

    monkeypatch.setattr(gateway.training, "check_request", spent)
    refused = await gateway.http.post("/v1/teachers/big", json=BODY)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
    assert len(gateway.trainer.asked) == 1
