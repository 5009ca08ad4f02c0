"""Authorisation of a new ladder, before it is forwarded to the trainer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

import orjson
from pydantic import ConfigDict

from adapters.errors import AdapterError
from adapters.names import parse_name
from adapters.protocol.requests import LadderFields
from adapters.protocol.runs import CreateLadder, LadderContext
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import named_file
from service.errors import BadRequest, Forbidden, NotFound
from service.files.purposes import Purpose
from service.files.service import Files
from service.http.body import as_model
from service.registry.catalog import Catalog
from service.training.jobs import JOB_SCOPES, datasets_detail, datasets_in, reference
from service.training.service import JSON, Answer, ProvisionRequest, Training

LADDERS_PATH: Final = "/v1/ladders"
CheckStore = Callable[[Caller, str], Awaitable[object]]
"""Raises NotFound if the caller may not read the store with this id."""


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
            NotFound: The file, the dataset or a store does not exist for this caller.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is revoked.
        """
        if caller.background:
            raise Forbidden("a job's own key cannot create ladders", code="job_key")
        request = as_model(body, LadderRequest)
        name = self._name(caller, request.adapter)
        for index, store in enumerate(request.vector_store_ids or ()):
            await self._readable(caller, store, f"vector_store_ids.{index}")
        purposes = (Purpose.FINE_TUNE,)
        named = await named_file(self._database, self._files, caller, request.training_file, purposes, "training_file")
        files = {"training_file": named}
        context = LadderContext(
            adapter=name,
            training_file=reference(named.file),
            vector_stores=tuple(request.vector_store_ids or ()),
            datasets=datasets_in(files),
        )
        envelope = CreateLadder(request=request.model_dump(exclude_unset=True), context=context)
        provision = ProvisionRequest(
            path=LADDERS_PATH,
            key=_key(caller, name),
            files={"training_file": named.file.id},
            headers=headers | JSON,
            body=orjson.dumps(envelope.model_dump()),
            action="ladder.create",
            detail={"adapter": name, "quick": request.quick, **datasets_detail(files)},
        )
        return await self._training.provision(provision, actor)

    def _name(self, caller: Caller, text: str) -> str:
        try:
            name = parse_name(text, base_name=self._catalog.base_name)
        except AdapterError as error:
            raise BadRequest(error.message, param="adapter", code=error.code) from None
        if not caller.may_use(name):
            globs = ", ".join(f"`{glob}`" for glob in caller.adapters or ()) or "none"
            raise Forbidden(
                f"the API key may only make adapters whose names match {globs}; got `{name}`",
                param="adapter",
                code="adapter_not_allowed",
            )
        return name

    async def _readable(self, caller: Caller, store: str, param: str) -> None:
        if self._check_store is None:
            raise BadRequest("`vector_store_ids`: this gateway has no vector stores", param="vector_store_ids")
        try:
            await self._check_store(caller, store)
        except NotFound as error:
            raise NotFound(error.message, param=param, code=error.code) from None


def _key(caller: Caller, name: str) -> KeyDraft:
    """The key with which the ladder and its child runs make versions, ask them, and keep examples in a store."""
    scopes = JOB_SCOPES | ({Scope.KNOWLEDGE} if caller.may(Scope.KNOWLEDGE) else frozenset())
    return KeyDraft(
        name=f"advising on {name}",
        project=caller.project,
        scopes=frozenset(scopes),
        adapters=(name,),
        stores=None,  # the caller's
        background=True,
        parent_key_id=caller.key_id,
    )
