"""Ladders: authorised here, created by the trainer. See `service.training.authorization`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from adapters.authorization import StoreNames
from adapters.protocol.requests import LadderFields
from adapters.protocol.runs import CreateLadder, LadderContext, TeacherRef
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import NamedFile, named_file
from service.errors import BadRequest, ModelNotFound, NotFound
from service.files.purposes import Purpose
from service.files.service import Files
from service.http.body import as_model
from service.registry.catalog import Catalog
from service.training.authorization import (
    JOB_SCOPES,
    adapter_name,
    datasets_detail,
    datasets_in,
    live_grounding,
    reference,
    refuse_run_key,
    run_key,
    stores_of,
)
from service.training.evaluations import resolve
from service.training.service import Answer, ProvisionRequest, Training

LADDERS_PATH: Final = "/v1/ladders"
CheckStore = Callable[[Caller, str], Awaitable[object]]
"""Raises NotFound if the caller may not read the store with this id."""
PROMPTS: Final = (Purpose.FINE_TUNE, Purpose.EVALS, Purpose.USER_DATA)
"""Purposes of a file with prompts."""


class LadderRequest(LadderFields):
    """Body of ``POST /v1/ladders``, as far as the gateway checks it; the trainer checks the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict()


class LadderService:
    """Creates ladders.

    Args:
        training: Requests them from the trainer.
        files: Holds the training file.
        catalog: Knows the base's name.
        database: The datasets.
        check_store: None if the gateway has no vector stores.
    """

    def __init__(
        self, training: Training, files: Files, catalog: Catalog, database: Database, check_store: CheckStore | None
    ) -> None:
        self._training = training
        self._files = files
        self._catalog = catalog
        self._database = database
        self._check_store = check_store

    async def create(self, caller: Caller, body: dict[str, object], headers: dict[str, str], *, actor: Actor) -> Answer:
        """Check the request, create the ladder's key, hold its file and request it from the trainer.

        Raises:
            Forbidden: The caller is itself a job, or may not create that adapter.
            NotFound: A file, a dataset or a store does not exist for this caller.
            Conflict: The teacher cannot serve now.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is revoked.
        """
        refuse_run_key(caller, "ladders")
        request = as_model(body, LadderRequest)
        name = adapter_name(caller, request.adapter, "adapter", catalog=self._catalog, action="make")
        for index, store in enumerate(request.vector_store_ids or ()):
            await self._readable(caller, store, f"vector_store_ids.{index}")
        teacher = self._teacher(caller, request)
        named = {
            "training_file": await self._file(caller, request.training_file, (Purpose.FINE_TUNE,), "training_file")
        }
        if request.unlabelled_file is not None:
            named["unlabelled_file"] = await self._file(caller, request.unlabelled_file, PROMPTS, "unlabelled_file")
        files = {field: reference(each.file) for field, each in named.items()}
        context = LadderContext(
            adapter=name,
            training_file=files["training_file"],
            vector_stores=tuple(request.vector_store_ids or ()),
            teacher=teacher,
            unlabelled_file=files.get("unlabelled_file"),
            datasets=datasets_in(named),
            stores=await stores_of(self._database, caller.project, self._groundings(caller, request, name, teacher)),
        )
        envelope = CreateLadder(request=request.model_dump(exclude_unset=True), context=context)
        provision = ProvisionRequest(
            path=LADDERS_PATH,
            key=_key(caller, name, teacher, context.stores or ()),
            files={field: file.id for field, file in files.items()},
            headers=headers,
            envelope=envelope,
            action="ladder.create",
            detail={
                "adapter": name,
                "quick": request.quick,
                **({} if teacher is None else {"teacher": teacher.name}),
                **datasets_detail(named),
            },
        )
        return await self._training.provision(provision, actor)

    async def _file(self, caller: Caller, text: str, purposes: tuple[Purpose, ...], param: str) -> NamedFile:
        return await named_file(self._database, self._files, caller, text, purposes, param)

    def _teacher(self, caller: Caller, request: LadderRequest) -> TeacherRef | None:
        """Who labels, None if nobody does. A name that no model of the caller has may be an outside endpoint's."""
        if (request.teacher is None) != (request.unlabelled_file is None):
            given, missing = ("teacher", "unlabelled_file")[:: 1 if request.unlabelled_file is None else -1]
            raise BadRequest(f"`{given}` needs `{missing}`, which is missing", param=missing)
        if request.teacher is None:
            return None
        if not request.lora:
            raise BadRequest(
                "`teacher` trains a LoRA, which `lora: false` forbids; send one of the two", param="teacher"
            )
        try:
            return TeacherRef(name=resolve(self._catalog, caller, request.teacher, "teacher").name, outside=False)
        except ModelNotFound:
            return TeacherRef(name=request.teacher, outside=True)

    def _groundings(
        self, caller: Caller, request: LadderRequest, name: str, teacher: TeacherRef | None
    ) -> list[dict[str, Any] | None]:
        """How its rungs, what is live under its name and its teacher are grounded."""
        labels = teacher is not None and not teacher.outside and "@" in teacher.name
        of_teacher = self._catalog.resolve(caller, teacher.name).settings.stored() if teacher and labels else {}
        live = live_grounding(self._catalog, caller.project, name)
        return [{"vector_store_ids": request.vector_store_ids}, live, of_teacher.get("grounding")]

    async def _readable(self, caller: Caller, store: str, param: str) -> None:
        if self._check_store is None:
            raise BadRequest("`vector_store_ids`: this gateway has no vector stores", param="vector_store_ids")
        try:
            await self._check_store(caller, store)
        except NotFound as error:
            raise NotFound(error.message, param=param, code=error.code) from None


def _key(caller: Caller, name: str, teacher: TeacherRef | None, stores: tuple[StoreNames, ...]) -> KeyDraft:
    """The key with which the ladder and its child runs make versions, ask them and the teacher, and keep examples in a
    store."""
    scopes = JOB_SCOPES | ({Scope.KNOWLEDGE} if caller.may(Scope.KNOWLEDGE) else frozenset())
    asked = None if teacher is None or teacher.outside else teacher.name
    teachers = {asked.partition("@")[0]} if asked is not None and "@" in asked else set()
    return run_key(caller, f"advising on {name}", scopes, {name} | teachers, stores)
