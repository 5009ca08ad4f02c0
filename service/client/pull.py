"""A version's files on this machine: as they were uploaded, checked by their digest, with a model card."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.errors import AdapterError
from adapters.inspect import modules_in
from adapters.manifest import Manifest
from adapters.store import digest_of
from service.client.connection import Connection, path_of
from service.client.model_card import MAX_README_BYTES, adapter_card, is_adapter_card, is_blank_card
from service.client.output import not_written
from service.client.upload import CONFIG_FILE, METADATA_FILE, README_FILE, SETTINGS_FILE, WEIGHTS_FILE, file_sha256
from service.client.wire import ClientError

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterVersion

PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0)
"""Between attempts that bring nothing; after the last one the download is given up, and what has come is kept."""
ANY_RANK: Final = 2**31
_BROKEN: Final = frozenset({"connection_lost", "timeout"})


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is in the directory now: the files of the version, and of them those that were written by this call."""

    directory: Path
    files: tuple[str, ...]
    written: tuple[str, ...]


def pull(
    connection: Connection,
    version: AdapterVersion,
    target: Path,
    *,
    force: bool,
    progress: Callable[[int, int], None] | None,
) -> Pulled:
    """Write a version's files; `AdapterVersions.pull` says what, and what is raised."""
    name = f"{version['adapter']}@{version['version']}"
    if version["state"] != "ready":
        raise ClientError(0, "version_not_ready", f"{name} is {version['state']}; only a proven version is pulled.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        return _Puller(connection, version, target, progress).pull(force)
    except AdapterError as error:
        raise ClientError(0, error.code, error.message) from error
    except FileExistsError as error:
        raise ClientError(0, "target_exists", f"{target} is not a directory.") from error
    except OSError as error:
        raise not_written(target, error, "Pull again to go on.") from error


class _Puller:
    """One pull into one directory."""

    def __init__(
        self,
        connection: Connection,
        version: AdapterVersion,
        target: Path,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._connection = connection
        self._version = version
        self._target = target
        self._progress = progress

    def pull(self, force: bool) -> Pulled:
        """Write the files, the weights first. Raises ClientError, OSError."""
        version, digest = self._version, self._version["digest"]
        config = b"" if digest is None else self._connection.checked("GET", self._path("config")).content
        texts = self._texts(config)
        has_weights = digest is not None and self._has_weights(config, digest)
        is_new = digest is not None and not has_weights
        changed = [name for name, data in texts.items() if not _is_equal(self._target / name, data)]
        changed += [WEIGHTS_FILE] if is_new else []
        existing = sorted(name for name in changed if (self._target / name).exists() and not self._may_replace(name))
        if existing and not force:
            label = f"{version['adapter']}@{version['version']}"
            raise ClientError(
                0,
                "target_exists",
                f"{self._target} has other files than {label}: {', '.join(existing)}. Nothing was changed: name "
                "another directory, or overwrite them with --force.",
            )
        if is_new:
            self._bring_weights(config, str(digest))
        for name in texts:
            if name in changed:
                _write(self._target / name, texts[name])
        files = (*texts, *([WEIGHTS_FILE] if digest is not None else []))
        return Pulled(self._target, tuple(sorted(files)), tuple(sorted(changed)))

    def _texts(self, config: bytes) -> dict[str, bytes]:
        """The small files by name."""
        version = self._version
        texts = {CONFIG_FILE: config} if version["digest"] is not None else {}
        for name, value in ((SETTINGS_FILE, version["settings"]), (METADATA_FILE, version["metadata"])):
            if kept := _without_defaults(value):
                texts[name] = (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()
        base_name = Manifest.parse(config, max_rank=ANY_RANK).base_model_name if config else None
        texts[README_FILE] = adapter_card(version, base_name).encode()
        return texts

    def _may_replace(self, name: str) -> bool:
        """Whether a file holds nothing of the user's: an earlier card of the version, or the form that PEFT leaves."""
        path = self._target / name
        if name != README_FILE or not path.is_file() or path.stat().st_size > MAX_README_BYTES:
            return False
        text = path.read_text(encoding="utf-8", errors="replace")
        return is_adapter_card(text, self._version) or is_blank_card(text)

    def _has_weights(self, config: bytes, digest: str) -> bool:
        """Whether the directory has the version's weights already."""
        weights = self._target / WEIGHTS_FILE
        try:
            return weights.is_file() and _digest(config, weights) == digest
        except AdapterError:
            return False

    def _bring_weights(self, config: bytes, digest: str) -> None:
        """Download the weights, or what is missing of them. Raises ClientError `damaged`."""
        part = self._target / f".{WEIGHTS_FILE}.{digest[:16]}.part"
        self._download(part, self._version["bytes"])
        try:
            arrived = _digest(config, part)
        except AdapterError:
            arrived = ""
        if arrived != digest:
            part.unlink()
            raise ClientError(0, "damaged", "The downloaded files do not match the version's digest; pull again.")
        _sync(part)
        part.replace(self._target / WEIGHTS_FILE)
        _sync(self._target)

    def _download(self, part: Path, size: int) -> None:
        """Bring a file of ``size`` bytes to its end, however often the connection breaks."""
        failures = 0
        while (offset := part.stat().st_size if part.exists() else 0) != size:
            try:
                self._attempt(part, offset if offset < size else 0, size)
            except ClientError as error:
                has_come = part.exists() and part.stat().st_size > offset
                failures = 0 if has_come else failures + 1
                if error.code not in _BROKEN or failures > len(PAUSES_S):
                    raise
                time.sleep(PAUSES_S[max(0, failures - 1)])

    def _attempt(self, part: Path, offset: int, size: int) -> None:
        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={offset}-"} if offset else {})
        with self._connection.stream("GET", self._path("weights"), headers=headers) as response:
            done = offset if response.status_code == 206 else 0
            with part.open("ab" if done else "wb") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    done += len(chunk)
                    if self._progress is not None:
                        self._progress(done, size)
        if done != size:
            part.unlink()
            raise ClientError(0, "damaged", f"The weights have {done:,} bytes instead of {size:,}; pull again.")

    def _path(self, file: str) -> str:
        return path_of("adapters", self._version["adapter"], "versions", self._version["version"], "files", file)


def _digest(config: bytes, weights: Path) -> str:
    """The digest of an adapter's files, as the gateway's store has it. Raises AdapterError."""
    manifest = Manifest.parse(config, max_rank=ANY_RANK).resolve(modules_in(weights))
    return digest_of(manifest.canonical(), file_sha256(weights))


def _without_defaults(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: an upload without them is the same."""
    return {name: item for name, item in value.items() if item not in (None, {}, [])}


def _is_equal(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
