"""``/v1/reviews``. The gateway's headers identify the caller."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from adapters.protocol.requests import ChoiceBody, ReviewQueueBody
from trainer.http import DEFAULT_LISTED, After, Caller, Limit
from trainer.reviews.service import Reviews


async def reviews(request: Request) -> Reviews:
    """The review service."""
    service: Reviews = request.app.state.trainer.reviews
    return service


router = APIRouter(prefix="/v1/reviews", tags=["reviews"])
Service = Annotated[Reviews, Depends(reviews)]
EvaluationId = Annotated[str | None, Query(max_length=64)]


@router.get("")
async def list_reviews(
    caller: Caller, service: Service, after: After = None, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """The project's evaluations with pairs for human review, newest first."""
    return await service.page(caller, after=after, limit=limit)


@router.post("")
async def create_reviews(body: ReviewQueueBody, caller: Caller, service: Service) -> dict[str, Any]:
    """Have people review the answers of an evaluation or a job that has ended, without a judge."""
    return await service.create(caller, body)


@router.get("/next")
async def next_review(
    caller: Caller, service: Service, evaluation: EvaluationId = None, after: After = None
) -> dict[str, Any]:
    """The next pair that has not been reviewed; with `after`, the next one after that pair."""
    return await service.following(caller, evaluation=evaluation, after=after)


@router.post("/{evaluation}/end")
async def end_reviews(evaluation: str, caller: Caller, service: Service) -> dict[str, Any]:
    """Take no more choices."""
    return await service.end(caller, evaluation)


@router.get("/{review_id}")
async def get_review(review_id: str, caller: Caller, service: Service) -> dict[str, Any]:
    """One pair."""
    return await service.get(caller, review_id)


@router.post("/{review_id}")
async def choose(review_id: str, body: ChoiceBody, caller: Caller, service: Service) -> dict[str, Any]:
    """Choose the better answer."""
    return await service.choose(caller, review_id, body.choice)
