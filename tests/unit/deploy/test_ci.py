"""`.ci/run` installs what the tests would otherwise be skipped for, and says that none may be."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from tests.support.system import PACKAGES

RUN = Path(".ci/run").read_text()


def test_it_installs_every_package_that_a_test_needs_and_lets_none_be_skipped() -> None:
    assert "export CI=true" in RUN
    for package in PACKAGES.values():
        assert f"missing+=({package})" in RUN, package


def test_property_tests_have_no_deadline_and_the_same_examples_each_time() -> None:
    """Hypothesis has a profile of its own for CI; the tests have one for everywhere."""
    profile = settings()
    assert (profile.deadline, profile.derandomize, profile.database) == (None, True, None)
