"""`client.adapters`: adapters, their versions and aliases. Needs a key with the scope `adapters`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, TypedDict, cast

import httpx

from adapters.names import DEFAULT_ALIAS, parse_reference
from service.client.connection import CONNECT_S, Connection, Resource, given, path_of
from service.client.types.adapters import (
    Adapter,
    AdapterAlias,
    AdapterPin,
    AdapterVersion,
    DeletedAlias,
    RecordedVerdict,
)
from service.client.types.evaluations import Evaluation
from service.client.upload import (
    CONFIG_FILE,
    README_FILE,
    WEIGHTS_FILE,
    AdapterDirectory,
    CountedFile,
    not_readable,
    packages_missing,
)
from service.client.wire import ClientError, error_of, event_of, events

if TYPE_CHECKING:
    from adapters.merge import Merge
    from service.client.pull import Pulled

PROVING: Final = httpx.Timeout(60, connect=CONNECT_S, read=360)
"""An upload that waits for its proof; above the gateway's own limit, so that its answer arrives and not our timeout."""
FETCHING: Final = httpx.Timeout(60, connect=CONNECT_S)
"""Between two events of a push that fetches its files; the gateway sends something every 10 s."""
WARMING: Final = httpx.Timeout(180, connect=CONNECT_S)
"""Moving an alias: the engine loads each target version first, and measures it where that was never done."""
REVALIDATING: Final = httpx.Timeout(300, connect=CONNECT_S)
"""Starting evaluations, up to a hundred in one request."""


class PushProgress(TypedDict):
    """How far a push is whose files the gateway fetches."""

    object: Literal["adapter.push"]
    stage: Literal["fetching", "proving"]
    file: NotRequired[str]
    """Of `fetching`, the file that comes."""
    bytes: NotRequired[int]
    """How much of it has come."""
    total: NotRequired[int | None]
    """Its size; None if the source does not say."""


class Adapters(Resource):
    """`client.adapters`. Names have the form `brand-voice`, references also `brand-voice@3` or `brand-voice:canary`.

    Every method raises ClientError: `adapter_not_found`, `version_not_found` or `alias_not_found` (404) for what does
    not exist or is hidden from the key.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.versions = AdapterVersions(connection)

    def list(self) -> Iterator[Adapter]:
        """All adapters with their versions, by name."""
        return self._connection.pages(Adapter, path_of("adapters"), cursor="name")

    def retrieve(self, name: str) -> Adapter:
        """One adapter with its aliases and versions."""
        return self._connection.request(Adapter, "GET", path_of("adapters", name))

    def push(
        self,
        name: str,
        directory: Path | str | AdapterDirectory | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        base: str | None = None,
        wait: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> AdapterVersion:
        """Upload the output directory of a PEFT run as a new version, or settings alone as one without weights.

        Args:
            name: The adapter's name; the first version creates it.
            directory: Contains adapter_config.json and adapter_model.safetensors, and optionally README.md,
                metadata.json and settings.json. None: the version has no weights, the base answers with ``settings``.
            settings: Replaces settings.json: `system_prompt`, `examples`, `sampling`, `grounding`.
            metadata: Replaces metadata.json.
            alias: Moves to the version once it is proven. None: `live` for the first version of a name, else none; an
                empty string: none.
            base: The base that it is for, where the gateway serves several. None: the one that adapter_config.json
                names, if it is served, else the default.
            wait: Wait until the version is proven, up to 6 minutes; otherwise it is returned in the state `proving`.
            progress: Called with the number of weight bytes sent since its last call.

        Raises:
            ClientError: `not_an_adapter`, `json_invalid` or `not_readable` before anything is sent; 422 with the reason
                where inspection or proof reject the adapter; `missing_required_parameter` (400) without weights and
                settings.
        """
        if directory is None:
            return self._push_settings(name, settings, metadata, alias, base, wait)
        source = directory if isinstance(directory, AdapterDirectory) else AdapterDirectory.read(directory)
        fields = {"name": name}
        fields |= given({"alias": alias, "base": base})
        for field, value, default in (
            ("settings", settings, source.settings),
            ("metadata", metadata, source.metadata),
        ):
            chosen = value if value is not None else default
            if chosen is not None:
                fields[field] = json.dumps(chosen, ensure_ascii=False)
        try:
            config = source.config.read_bytes()
            readme = None if source.readme is None else source.readme.read_bytes()
            weights = CountedFile(source.weights, progress)
        except OSError as error:
            raise not_readable(error) from error
        files: dict[str, tuple[str, Any, str]] = {"config": (CONFIG_FILE, config, "application/json")}
        if readme is not None:
            files["readme"] = (README_FILE, readme, "text/markdown")
        files["weights"] = (WEIGHTS_FILE, weights, "application/octet-stream")
        params = {} if wait else {"wait": "false"}
        with weights:
            return self._connection.request(
                AdapterVersion, "POST", path_of("adapters"), params=params, data=fields, files=files, timeout=PROVING
            )

    def push_from(
        self,
        name: str,
        source: str,
        *,
        sha256: str | None = None,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        base: str | None = None,
        wait: bool = True,
        progress: Callable[[PushProgress], object] | None = None,
    ) -> AdapterVersion:
        """Have the gateway fetch a new version's files from a hub, a bucket or a web server.

        A call that breaks off ends the fetch; the same call again goes on from what has come.

        Args:
            source: `hf://ORG/REPO@REVISION/FOLDER`, `s3://BUCKET/FOLDER` or `https://HOST/FOLDER`; the gateway's
                setting HATRACK_SOURCES must cover it.
            sha256: What the weights' SHA-256 must be, in hex. None: what the source says, if it does.
            settings, metadata, alias, base, wait: As for ``push``; nothing but the two files and the README is fetched.
            progress: Called as the files come, and when the proof begins.

        Raises:
            ClientError: `source_not_allowed` (403); `source_invalid`, `source_not_found`, `source_digest_mismatch`
                (422); `source_failed` (502); `source_timeout` (504); and as for ``push``.
        """
        origin = {"url": source, **({} if sha256 is None else {"sha256": sha256})}
        options = given({"settings": settings, "metadata": metadata, "alias": alias, "base": base})
        body = {"name": name, "source": origin, **options}
        params = {"stream": "true", **({} if wait else {"wait": "false"})}
        path = path_of("adapters")
        with self._connection.stream("POST", path, params=params, json=body, timeout=FETCHING) as response:
            for data in events(response.iter_bytes()):
                event = event_of(data)
                if "error" in event:
                    raise error_of(int(event.get("status") or 0), event)
                if event.get("object") != "adapter.push":
                    return cast(AdapterVersion, event)
                if progress is not None:
                    progress(cast(PushProgress, event))
        raise ClientError(0, "connection_lost", f"{self._connection.url} ended the push; push again to go on.")

    def _push_settings(
        self,
        name: str,
        settings: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        alias: str | None,
        base: str | None,
        wait: bool,
    ) -> AdapterVersion:
        body: dict[str, Any] = {"name": name, "settings": dict(settings or {})}
        body |= given({"metadata": None if metadata is None else dict(metadata), "alias": alias, "base": base})
        params = {} if wait else {"wait": "false"}
        return self._connection.request(
            AdapterVersion, "POST", path_of("adapters"), params=params, json=body, timeout=PROVING
        )

    def delete(self, reference: str, *, force: bool = False) -> None:
        """Delete a version (`brand-voice@2`) or an adapter with all its versions (`brand-voice`).

        Args:
            force: Also delete what an alias points at.

        Raises:
            ClientError: `reference_invalid` for an alias, which would be ambiguous; `version_in_use` (422) where an
                alias points there.
            adapters.errors.AdapterError: The reference is malformed.
        """
        target = parse_reference(reference)
        if target.alias is not None:
            message = f"{reference} is an alias: name a version ({target.name}@2) or the whole adapter ({target.name})."
            raise ClientError(0, "reference_invalid", message, "reference")
        below = () if target.version is None else ("versions", target.version)
        params = {"force": "true"} if force else {}
        self._connection.checked("DELETE", path_of("adapters", target.name, *below), params=params)

    def promote(self, reference: str, alias: str = DEFAULT_ALIAS, *, force: bool = False) -> AdapterAlias:
        """Point an alias at a version, `brand-voice@3`; the engine loads it first.

        Args:
            force: Move `live` even to a version that is held back.

        Raises:
            ClientError: `version_missing` if the reference names no version; 409 (`version_held_back`,
                `version_not_ready`, …) if the version may not or cannot serve.
            adapters.errors.AdapterError: The reference is malformed.
        """
        target = parse_reference(reference)
        if target.version is None:
            raise ClientError(0, "version_missing", f"Name a version, such as {target.name}@3.", "reference")
        return self._point(target.name, alias, {"version": target.version}, force)

    def split(
        self, name: str, weights: Mapping[int, int], alias: str = DEFAULT_ALIAS, *, force: bool = False
    ) -> AdapterAlias:
        """Split an alias over 2 to 8 versions; the engine loads them first. Promoting a version ends the split.

        Args:
            weights: Positive integers by version, such as `{3: 90, 4: 10}`; a version's share of the requests is its
                weight divided by their sum.
            force: Point `live` even at versions that are held back.
        """
        return self._point(name, alias, {"split": {str(version): weights[version] for version in weights}}, force)

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS) -> AdapterAlias:
        """Point an alias at the version or split before the current one.

        Raises:
            ClientError: `no_earlier_version` (409) if there is none.
        """
        path = path_of("adapters", name, "aliases", alias, "rollback")
        return self._connection.request(AdapterAlias, "POST", path, timeout=WARMING)

    def delete_alias(self, name: str, alias: str) -> DeletedAlias:
        """Delete an alias; the versions stay, and requests for the alias fail.

        Raises:
            ClientError: `alias_not_found` (404).
        """
        return self._connection.request(DeletedAlias, "DELETE", path_of("adapters", name, "aliases", alias))

    def pin(self, name: str) -> AdapterPin:
        """Keep an adapter's live version loaded, wherever `live` moves.

        Raises:
            ClientError: `too_many_pins` (409).
        """
        return self._connection.request(AdapterPin, "PUT", path_of("adapters", name, "pin"))

    def unpin(self, name: str) -> AdapterPin:
        """Let the engine load and evict an adapter like any other."""
        return self._connection.request(AdapterPin, "DELETE", path_of("adapters", name, "pin"))

    def _point(self, name: str, alias: str, body: dict[str, Any], force: bool) -> AdapterAlias:
        if force:  # an older gateway does not know the field
            body["force"] = True
        path = path_of("adapters", name, "aliases", alias)
        return self._connection.request(AdapterAlias, "PUT", path, json=body, timeout=WARMING)


class AdapterVersions(Resource):
    """`client.adapters.versions`. Every method raises ClientError, `version_not_found` (404) among others."""

    def retrieve(self, name: str, version: int) -> AdapterVersion:
        """One version, even a rejected one. Its lineage, if it has one, is in `["metadata"]["lineage"]`."""
        return self._connection.request(AdapterVersion, "GET", path_of("adapters", name, "versions", version))

    def verdicts(self, name: str, version: int) -> Iterator[RecordedVerdict]:
        """A version's verdicts, newest first."""
        return self._connection.pages(RecordedVerdict, path_of("adapters", name, "versions", version, "verdicts"))

    def revalidate(self, name: str, version: int) -> Evaluation:
        """Run a version's latest evaluation again; one that is already running is returned.

        Also needs the scopes `train` and `infer`.

        Raises:
            ClientError: `never_judged` or `nothing_to_repeat` (409).
        """
        path = path_of("adapters", name, "versions", version, "revalidate")
        return self._connection.request(Evaluation, "POST", path, timeout=REVALIDATING)

    def download(self, name: str, version: int, file: Literal["config", "weights"], target: Path | str) -> int:
        """Save a file exactly as it was uploaded; ``target`` is created only once the download is complete.

        Returns:
            Its size in bytes.
        """
        return self._connection.download(path_of("adapters", name, "versions", version, "files", file), target)

    def pull(
        self,
        name: str,
        version: int,
        target: Path | str,
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pulled:
        """Write a version's files into a directory: adapter_config.json, adapter_model.safetensors, README.md (a model
        card), and settings.json and metadata.json if it has any; ``push`` takes the directory.

        A version without weights has only the last three. The weights come first, into a hidden file from which a later
        call goes on, and count once the digest is checked; files that are equal already are left alone.

        Args:
            force: Overwrite other files of these names.
            progress: Called with the bytes of the weights that are there, and all that will be.

        Raises:
            ClientError: `version_not_ready`; `target_exists`: other files are there, and nothing was changed;
                `damaged`, `disk_full`, `not_writable`; `packages_missing`: the light client is installed without its
                extra `weights`.
        """
        try:
            from service.client.pull import pull  # numpy
        except ModuleNotFoundError as error:
            raise packages_missing(error) from error

        version_object = self.retrieve(name, version)
        return pull(self._connection, version_object, Path(target), force=force, progress=progress)

    def export_merged(
        self,
        name: str,
        version: int,
        target: Path | str,
        *,
        base: Path | str,
        cache_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Merge:
        """Write a version, merged into its base, as a checkpoint with a model card.

        ``target`` is created only once the export is complete. Memory is bounded, whatever the model's size.

        Args:
            base: The directory of the base's unquantized checkpoint, on this machine.
            cache_dir: Where hashes of the base's files are kept between exports. None: nowhere.
            progress: Called with the bytes written so far, and all that will be.

        Raises:
            ClientError: `version_not_ready`; `target_exists`; `other_base`: the directory has another base;
                `base_invalid`: it is no checkpoint that can be merged into; `not_finite`: its dtype cannot hold a
                merged value; `disk_full`, `not_writable`, `damaged`; `packages_missing`: the light client is installed
                without its extra `weights`.
        """
        try:
            from service.client.export import export_merged  # numpy
        except ModuleNotFoundError as error:
            raise packages_missing(error) from error

        return export_merged(
            self.retrieve(name, version),
            lambda file, path: self.download(name, version, file, path),
            Path(target),
            base=Path(base),
            cache_dir=cache_dir,
            progress=progress,
        )
