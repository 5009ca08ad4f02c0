from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from adapters.base import BaseDescription
from tests.support.adapters import describe_base, make_base

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties: how long one example, or its making, takes on a busy machine is not what is asked."""


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base(base_dir: Path) -> BaseDescription:
    return describe_base(base_dir)
