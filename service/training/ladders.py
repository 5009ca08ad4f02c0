"""Ladders: authorised here, created by the trainer. See `service.training.authorization`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

from pydantic import ConfigDict

from adapters.protocol.requests import LadderFields
from adapters.protocol.runs import CreateLadder, LadderContext
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import named_file
from service.errors import BadRequest, NotFound
from service.files.purposes import Purpose
from service.files.service import Files
from service.http.body import as_model
from service.registry.catalog import Catalog
from service.training.authorization import (
    JOB_SCOPES,
    adapter_name,
    datasets_detail,
    datasets_in,
    reference,
    refuse_run_key,
    run_key,
)
from service.training.service import Answer, ProvisionRequest, Training

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
        refuse_run_key(caller, "ladders")
        request = as_model(body, LadderRequest)
        name = adapter_name(caller, request.adapter, "adapter", base_name=self._catalog.base_name, action="make")
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
            headers=headers,
            envelope=envelope,
            action="ladder.create",
            detail={"adapter": name, "quick": request.quick, **datasets_detail(files)},
        )
        return await self._training.provision(provision, actor)

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
    return run_key(caller, f"advising on {name}", scopes, {name})
