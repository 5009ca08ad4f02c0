from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters.base import BaseDescription
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base
from tests.unit.service.registry.engine import BASE
from tests.unit.service.training.revalidation_app import HELD_OUT, RevalidationApp, judge
from tests.unit.service.training.training_gateway import TrainingGateway


@pytest.fixture
async def gateway() -> AsyncIterator[TrainingGateway]:
    # a Unix socket's path has 107 bytes, which pytest's own directories may go beyond
    with tempfile.TemporaryDirectory(prefix="hatrack-") as home:
        async with TrainingGateway(Path(home)).open() as ready:
            yield ready


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(make_base(tmp_path_factory.mktemp("base")), served_name=BASE)


@pytest.fixture
def files(tmp_path: Path, base: BaseDescription) -> Callable[..., AdapterFiles]:
    count = iter(range(1000))
    return lambda **given: make_adapter(tmp_path / f"adapter-{next(count)}", base, **given)


@pytest.fixture
async def revalidation_app(base: BaseDescription, files: Callable[..., AdapterFiles]) -> AsyncIterator[RevalidationApp]:
    """`voice@1` is due, `ant@1` is fresh, `bee@1` was never judged."""
    # a Unix socket's path has 107 bytes, which pytest's own directories may go beyond
    with tempfile.TemporaryDirectory(prefix="hatrack-") as home:
        async with RevalidationApp(Path(home), base).opened() as ready:
            await ready.file(HELD_OUT)
            for seed, name in enumerate(("voice", "ant", "bee")):
                await ready.push(name, files(seed=seed))
            await judge(ready, "voice@1", days=91)
            await judge(ready, "ant@1")
            yield ready
