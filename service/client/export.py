"""A version and its base, merged into a checkpoint of its own on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from adapters.base import Fingerprint, describe
from adapters.errors import AdapterError
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from adapters.merge import Merge, merge, merged_bytes
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, digest_of
from service.client.model_card import model_card
from service.client.output import not_written
from service.client.wire import ClientError

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterVersion

HEADROOM_BYTES: Final = 64 * 1024 * 1024
"""Free space beyond the files themselves."""
NO_ENGINE: Final = "none"
README: Final = "README.md"
Download = Callable[[Literal["config", "weights"], Path], object]


def export_merged(
    version: AdapterVersion,
    download: Download,
    target: Path,
    *,
    base: Path,
    cache_dir: Path | None,
    progress: Callable[[int, int], None] | None,
) -> Merge:
    """Merge a version into a copy of its base; `AdapterVersions.export_merged` says what is raised.

    Args:
        download: Saves one of the version's files.
        progress: Called with the bytes written so far, and all that will be.
    """
    name = f"{version['adapter']}@{version['version']}"
    if version["state"] != "ready":
        raise ClientError(0, "version_not_ready", f"{name} is {version['state']}; only a proven version is exported.")
    if version["digest"] is None:
        raise ClientError(
            0, "version_has_no_files", f"{name} has no weights, only settings: the base is its checkpoint."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ClientError(0, "target_exists", f"{target} exists and is not an empty directory.")
    try:
        total = merged_bytes(base)
        with _partial(target, total + version["bytes"]) as partial:
            adapter = partial / ".adapter"
            adapter.mkdir()
            download("config", adapter / CONFIG_FILE)
            download("weights", adapter / WEIGHTS_FILE)
            result = _merge(version, adapter, partial, base=base, cache_dir=cache_dir, report=_sum(progress, total))
            shutil.rmtree(adapter)
            (partial / README).write_text(model_card(version, base, result), encoding="utf-8")
    except AdapterError as error:
        raise ClientError(0, error.code, error.message) from error
    except OSError as error:
        raise not_written(target, error, "Nothing was exported.") from error
    return result


def _merge(
    version: AdapterVersion,
    adapter: Path,
    target: Path,
    *,
    base: Path,
    cache_dir: Path | None,
    report: Callable[[int], None],
) -> Merge:
    """Check that base and files are the version's, and merge them. Raises ClientError, AdapterError, OSError."""
    expected = Fingerprint.model_validate(version["base"])
    description = describe(
        base,
        served_name=base.name,
        dtype=expected.dtype,
        quantization=None,
        engine_version=NO_ENGINE,
        cache_dir=cache_dir,
    )
    if not expected.servable_with(description.fingerprint):
        parts = ", ".join(
            part for part in expected.differences(description.fingerprint) if part in ("weights", "config")
        )
        message = f"{base} is not the base of {version['adapter']}@{version['version']}: its {parts} differ."
        raise ClientError(0, "other_base", message)
    manifest = Manifest.parse((adapter / CONFIG_FILE).read_bytes(), max_rank=2**31)
    resolved = inspect_weights(adapter / WEIGHTS_FILE, manifest, description).manifest
    with (adapter / WEIGHTS_FILE).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if digest_of(resolved.canonical(), sha256) != version["digest"]:
        raise ClientError(0, "damaged", "The downloaded files do not match the version's digest; try again.")
    return merge(base, adapter, target, base=description, on_bytes=report)


@contextmanager
def _partial(target: Path, needed: int) -> Iterator[Path]:
    """A directory beside `target` that becomes `target` at the end, or is removed if anything goes wrong.

    Raises:
        ClientError: `disk_full`: there is less free space than `needed` bytes and some headroom.
    """
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed + HEADROOM_BYTES:
        gib = 1024**3
        message = f"{parent} has {free / gib:.1f} GiB free; the export needs {(needed + HEADROOM_BYTES) / gib:.1f} GiB."
        raise ClientError(0, "disk_full", message)
    partial = parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        partial.rename(target)
        _sync(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sum(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    written = 0

    def report(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total)

    return report
