"""What the document says of the trainer's routes is what the trainer has, which the service may not import."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Match

import adapters.protocol.reports as reports
import trainer.data.report as data
import trainer.evaluate.evaluations.schemas as evaluations
import trainer.evaluate.evaluations.spec as evaluation_spec
import trainer.evaluate.report as report
import trainer.evaluate.spec as evaluate
import trainer.evaluate.verdict as verdict
import trainer.finetune.schemas as jobs
import trainer.finetune.spec as spec
import trainer.ladder.advice as advice
import trainer.ladder.reporting as ladder_report
import trainer.ladder.spec as ladders
import trainer.reviews.routes as reviews
import trainer.runs.protocol as protocol
from service.http.schema import add_routes
from service.training import evaluation_schemas, job_schemas, ladder_schemas, request_schemas
from service.training.evaluations import Arm, EvaluationRequest
from service.training.job_request import JobRequest
from service.training.ladders import LadderRequest
from service.training.openapi import FORWARDED
from service.training.routes import router
from trainer.evaluate.evaluations.routes import router as evaluations_router
from trainer.evaluate.teachers import router as teachers_router
from trainer.finetune.routes import router as jobs_router
from trainer.ladder.routes import router as ladders_router
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.recipe import Recipe

DESCRIBED = {
    (method, route.path): route for route in FORWARDED if isinstance(route, APIRoute) for method in route.methods
}


def trainers_routes() -> Iterator[tuple[str, str, APIRoute]]:
    for room in (jobs_router, evaluations_router, ladders_router, reviews.router, teachers_router):
        for route in room.routes:
            assert isinstance(route, APIRoute)
            yield from ((method, route.path, route) for method in route.methods)


def parameters(dependant: Dependant) -> dict[str, tuple[Any, bool]]:
    """Those that a client sends, with their defaults; the gateway's own headers are none of them."""
    found = {
        field.alias: (field.field_info.default, field.field_info.is_required())
        for field in (*dependant.query_params, *dependant.header_params)
        if not field.alias.startswith("x-hatrack-")
    }
    for inner in dependant.dependencies:
        found |= parameters(inner)
    return found


def test_every_route_of_the_trainer_is_described_with_its_parameters() -> None:
    trainers = {(method, path): route for method, path, route in trainers_routes()}
    assert set(DESCRIBED) == set(trainers)
    for name, route in trainers.items():
        assert parameters(DESCRIBED[name].dependant) == parameters(route.dependant), name


def test_every_described_route_is_one_of_the_gateway_s() -> None:
    app = FastAPI()
    add_routes(app, router)
    for method, path in DESCRIBED:
        scope = {"type": "http", "method": method, "path": re.sub(r"\{\w+\}", "x", path), "headers": []}
        assert any(route.matches(scope)[0] is Match.FULL for route in app.routes), (method, path)


def test_nothing_that_is_described_is_run() -> None:
    rooms = {route.endpoint.__module__ for route in DESCRIBED.values()}
    assert rooms == {"service.training.openapi"}
    assert not any(isinstance(route, APIRouter) for route in router.routes)
    assert all(inspect.getdoc(route.endpoint) for route in DESCRIBED.values())


@pytest.mark.parametrize(
    ("described", "trainers", "apart"),
    [
        (request_schemas.JobBody, jobs.CreateBody, set()),
        (request_schemas.MethodBody, jobs.Method, {"reinforcement"}),
        (request_schemas.MethodOptionsBody, jobs.MethodOptions, set()),
        (request_schemas.JobBody, JobRequest, set()),
        (request_schemas.EvaluationBody, evaluations.EvaluationBody, {"kind"}),
        (request_schemas.EvaluationBody, EvaluationRequest, set()),
        (request_schemas.ArmBody, evaluations.ArmBody, set()),
        (request_schemas.ArmBody, Arm, set()),
        (request_schemas.MetricBody, evaluate.MetricOptions, set()),
        (job_schemas.Recipe, Recipe, set()),
        (job_schemas.JobPlan, spec.TrainingPlan, {"base_name"}),
        (job_schemas.PrimaryMetric, spec.PrimaryMetric, {"answers"}),
        (job_schemas.JobVerdict, evaluation_spec.VerdictRecord, set()),
        (job_schemas.JobError, protocol.Failure, set()),
        (reports.QualityReport, data.Report, set()),
        (reports.DataFinding, data.Finding, set()),
        (reports.HeldOutExamples, data.HeldOut, set()),
        (evaluation_schemas.EvaluationReport, report.EvaluationReport, {"people"}),
        (evaluation_schemas.ReportVerdict, verdict.Verdict, set()),
        (evaluation_schemas.VerdictCheck, verdict.Check, set()),
        (evaluation_schemas.ReportSuite, evaluate.SuiteResult, set()),
        (request_schemas.LadderBody, ladders.LadderBody, set()),
        (request_schemas.LadderBody, LadderRequest, set()),
        (ladder_schemas.LadderReport, ladder_report.LadderReport, set()),
        (ladder_schemas.ReportedRung, ladder_report.ReportedRung, set()),
        (ladder_schemas.LadderAdvice, advice.Advice, set()),
    ],
)
def test_a_described_object_has_the_fields_of_the_trainer_s(
    described: type[BaseModel], trainers: type[BaseModel], apart: set[str]
) -> None:
    assert names(described) ^ names(trainers) == apart


def test_the_hyperparameters_are_those_that_a_job_can_be_told() -> None:
    known = set(HyperparameterRequest.model_fields) | set(jobs.Options.model_fields)
    assert names(request_schemas.HyperparametersBody) == names(job_schemas.Hyperparameters) == known
    for name, field in request_schemas.HyperparametersBody.model_fields.items():
        model = HyperparameterRequest if name in HyperparameterRequest.model_fields else jobs.Options
        assert field.default == model.model_fields[name].default, name


def names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}
