"""Files as the API takes and shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from service.files.form import ANCHOR, MAX_EXPIRY_S, MIN_EXPIRY_S, SECONDS
from service.files.purposes import Purpose
from service.files.records import FileRow
from service.http.schema import ApiModel

FileContent = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]


class FileForm(BaseModel):
    """The parts of an upload. With `purpose` before `file`, faults of training data are found while it arrives."""

    model_config = ConfigDict(extra="forbid")

    purpose: Purpose = Field(description="`fine-tune-results` is for jobs' own keys, `batch_output` for batches.")
    expires_after_anchor: Literal["created_at"] | None = Field(None, alias=ANCHOR)
    expires_after_seconds: int | None = Field(None, alias=SECONDS, ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)
    file: FileContent


class FileObject(ApiModel):
    """A file."""

    object: Literal["file"]
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    status_details: None
    expires_at: int | None = Field(description="When it leaves the list by itself; null: never.")
    sha256: str = Field(description="Of its bytes, in hex.")


class DeletedFile(ApiModel):
    """A file that is off the list; its bytes are kept as long as a version, vector store, job or batch needs them."""

    object: Literal["file"]
    id: str
    deleted: Literal[True]


def file_object(row: FileRow) -> dict[str, Any]:
    """The file as OpenAI's file object, plus its `sha256`."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": row.expires_at,
        "sha256": row.sha256,
    }
