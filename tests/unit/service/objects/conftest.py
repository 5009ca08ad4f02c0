"""Object stores for the tests: a bucket of a real S3 server, and a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.objects.client import ObjectStore
from tests.support.s3 import Door, S3Server, running_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def door(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """The way to the server, which the environment names."""
    made = Door(s3.port)
    for name, value in s3.environment(made.endpoint).items():
        monkeypatch.setenv(name, value)
    yield made
    made.shut()


@pytest.fixture
def bucket_url(s3: S3Server, door: Door) -> str:
    return f"s3://{s3.bucket()}/some/prefix"


@pytest.fixture(params=["s3", "file"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("bucket_url"))
    (tmp_path / "objects").mkdir()
    return f"file://{tmp_path / 'objects'}"


@pytest.fixture
def objects(store_url: str) -> ObjectStore:
    return ObjectStore(store_url, allow_http=True)
