"""Weights that a file names: their directory and their digest. What is wrong with them is named by the file's field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adapters.errors import AdapterError
from service.cli.apply.document import stored_settings
from service.client import AdapterDirectory, ClientError
from service.client.upload import file_sha256, packages_missing

ANY_RANK: Final = 1 << 16


def read_directory(folder: Path, weights: Path, field_name: str) -> AdapterDirectory:
    """Look at weights, a path relative to ``folder``, without reading them.

    Raises:
        ClientError: There are none, or their settings.json is not one.
    """
    with _naming(field_name):
        directory = AdapterDirectory.read(folder / weights)
    with _naming(field_name, f"{weights / 'settings.json'}: "):
        stored_settings(directory.settings or {})
    return directory


def digest_of_directory(directory: AdapterDirectory, field_name: str) -> str:
    """The digest that the gateway will give to these weights. Raises ClientError."""
    try:
        from adapters.inspect import modules_in  # numpy
        from adapters.manifest import Manifest
        from adapters.store import digest_of
    except ModuleNotFoundError as error:
        raise packages_missing(error) from error

    with _naming(field_name):
        manifest = Manifest.parse(directory.config.read_bytes(), max_rank=ANY_RANK)
        return digest_of(manifest.resolve(modules_in(directory.weights)).canonical(), file_sha256(directory.weights))


@contextmanager
def _naming(field_name: str, place: str = "") -> Iterator[None]:
    """Raise what goes wrong as an error of a field, whose message begins with the field and the place in it."""
    try:
        yield
    except (AdapterError, ClientError) as error:
        raise ClientError(0, error.code, f"{field_name}: {place}{error.message}", field_name) from error
    except OSError as error:
        message = f"{field_name}: {place}{error.filename}: {error.strerror}."
        raise ClientError(0, "not_readable", message, field_name) from error
