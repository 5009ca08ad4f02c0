"""The file of `hatrack apply`: what it may say, and what is wrong with one that says something else."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapters import validation
from adapters.errors import AdapterError
from adapters.names import MAX_VERSION, parse_alias, parse_name
from service.access.caller import Limits, Scope
from service.client import ClientError, JsonObject, read_examples
from service.grounding.config import GroundingSettings
from service.registry.catalog import VersionSettings

MAX_FILE_BYTES: Final = 4 << 20
THIS: Final = "this"
"""What an alias points to in the file: the version that the file describes."""

VersionRef: TypeAlias = Annotated[int, Field(ge=1, le=MAX_VERSION, strict=True)] | Literal["this"]
Weight: TypeAlias = Annotated[int, Field(ge=1, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreState(_Part):
    """A vector store. Its documents are none of the file's. Without a description it keeps the one that it has."""

    description: str | None = None


class KeyState(_Part):
    """An API key, known by its name. ``expires_at`` is the start of a day, UTC."""

    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = (Scope.INFER,)
    adapters: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None
    filters: dict[str, str | bool | float] = Field(default_factory=dict)
    limits: Limits = Limits()
    expires_at: date | None = None

    @property
    def expires_at_s(self) -> int | None:
        """As Unix seconds."""
        if self.expires_at is None:
            return None
        return int(datetime(self.expires_at.year, self.expires_at.month, self.expires_at.day, tzinfo=UTC).timestamp())


class AdapterState(_Part):
    """An adapter: a version that it shall have (weights, settings), where its aliases point, whether it is pinned.

    Paths are relative to the file. What is not given is left as it is; without weights and settings no version is
    described, and the aliases point to numbers.
    """

    weights: Path | None = None
    system_prompt: str | None = None
    system_prompt_file: Path | None = None
    examples: Path | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    grounding: dict[str, Any] | None = None
    aliases: dict[str, VersionRef | Annotated[dict[VersionRef, Weight], Field(min_length=2, max_length=8)]] | None = (
        None
    )
    pinned: bool | None = None

    @field_validator("aliases")
    @classmethod
    def _alias_names(cls, aliases: dict[str, Any] | None) -> dict[str, Any] | None:
        for alias in aliases or {}:
            _checked(parse_alias, alias)
        return aliases

    @field_validator("grounding")
    @classmethod
    def _known_grounding(cls, grounding: dict[str, Any] | None) -> dict[str, Any] | None:
        if grounding is None:
            return None
        stores = grounding.get("stores", [])
        if not isinstance(stores, list) or not all(isinstance(store, str) for store in stores):
            raise ValueError("`stores` should be a list of names of vector stores")
        if "vector_store_ids" in grounding:
            raise ValueError("use `stores`, with names, instead of `vector_store_ids`")
        try:
            GroundingSettings.model_validate({name: value for name, value in grounding.items() if name != "stores"})
        except ValidationError as error:
            fault = validation.faults(error)[0]
            raise ValueError(f"`{'.'.join(map(str, fault['loc']))}`: {validation.message(fault)}") from error
        return grounding

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("`system_prompt` and `system_prompt_file` conflict; give one")
        if not self.describes_a_version and THIS in self.named_versions:
            raise ValueError(f"`aliases` name `{THIS}`, but neither `weights` nor settings describe a version")
        return self

    @property
    def describes_a_version(self) -> bool:
        """Whether there are weights or settings."""
        prompt = self.system_prompt or self.system_prompt_file
        return bool(self.weights or prompt or self.examples or self.sampling or self.grounding)

    @property
    def named_versions(self) -> set[int | str]:
        """The versions that aliases point to."""
        named: set[int | str] = set()
        for target in (self.aliases or {}).values():
            named |= set(target) if isinstance(target, dict) else {target}
        return named

    def settings(self, folder: Path, store_ids: dict[str, str], beside_weights: JsonObject | None = None) -> JsonObject:
        """The version's settings as the gateway stores them.

        Args:
            folder: What paths are relative to.
            store_ids: Ids of vector stores by name.
            beside_weights: The settings.json of the weights' directory; each field that the file gives replaces its.

        Raises:
            ClientError: A file cannot be read, or the settings are not allowed.
        """
        prompt = self.system_prompt
        if self.system_prompt_file is not None:
            prompt = _read(folder / self.system_prompt_file).strip()
        given: JsonObject = dict(beside_weights or {})
        if prompt is not None:
            given["system_prompt"] = prompt
        if "sampling" in self.model_fields_set:
            given["sampling"] = self.sampling
        if self.examples is not None:
            given["examples"] = read_examples(folder / self.examples)
        if self.grounding is not None:
            more = {name: value for name, value in self.grounding.items() if name != "stores"}
            given["grounding"] = more | {"vector_store_ids": [store_ids[name] for name in self.stores]}
        return stored_settings(given)

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the vector stores that ground its answers."""
        return tuple((self.grounding or {}).get("stores", ()))


class Desired(_Part):
    """The whole file. A section that is missing, or null, is not its business: nothing in it changes or is pruned."""

    project: str | None = None
    stores: dict[str, StoreState] | None = None
    adapters: dict[str, AdapterState] | None = None
    keys: dict[str, KeyState] | None = None

    @field_validator("stores", "adapters", "keys", mode="before")
    @classmethod
    def _empty_entries(cls, section: Any) -> Any:
        """`policies:` alone is an entry without anything said of it."""
        if not isinstance(section, dict):
            return section
        return {name: {} if entry is None else entry for name, entry in section.items()}

    @field_validator("adapters")
    @classmethod
    def _adapter_names(cls, adapters: dict[str, AdapterState] | None) -> dict[str, AdapterState] | None:
        for name in adapters or {}:
            _checked(parse_name, name)
        return adapters


def stored_settings(given: JsonObject) -> JsonObject:
    """A version's settings as the gateway stores them. Raises ClientError, of the field that is not allowed."""
    try:
        return VersionSettings.model_validate(given).stored()
    except ValidationError as error:
        fault = validation.faults(error)[0]
        field = ".".join(map(str, fault["loc"]))
        raise ClientError(0, "file_invalid", f"{field}: {validation.message(fault)}", field) from error


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's safe loader, which lets no key replace an earlier one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
                names.add(key.value)
        return dict(super().construct_mapping(node, deep))


def read_document(path: Path) -> Desired:
    """Read a file.

    Raises:
        ClientError: `file_invalid`: it cannot be read, is not YAML, or a field is wrong, which the message names.
    """
    text = _read(path)
    try:
        content = yaml.load(text, _UniqueKeys)  # noqa: S506 (it is a safe loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ClientError(0, "file_invalid", f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ClientError(0, "file_invalid", f"{path} must have `stores`, `adapters` or `keys`.")
    try:
        return Desired.model_validate(content)
    except ValidationError as error:
        lines = [_fault_line(fault, content) for fault in validation.faults(error)]
        message = f"{path}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{path}:", *dict.fromkeys(lines)])
        first = ".".join(validation.path(validation.faults(error)[0], content))
        raise ClientError(0, "file_invalid", message, first or None) from error


def _fault_line(fault: Any, content: object) -> str:
    field = ".".join(validation.path(fault, content)) or "the file"
    if fault["type"] == "extra_forbidden":
        return f"{field}: no such field"
    return f"{field}: {validation.message(fault)}; got {validation.shown(fault['input'])}"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ClientError(0, "file_invalid", f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB.")
        return data.decode("utf-8")
    except OSError as error:
        raise ClientError(0, "file_invalid", f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ClientError(0, "file_invalid", f"{path} is not UTF-8: {error}.") from error


def _checked(parse: Any, name: str) -> None:
    try:
        parse(name)
    except AdapterError as error:
        raise ValueError(error.message) from error
