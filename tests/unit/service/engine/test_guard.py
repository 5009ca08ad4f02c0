"""The plugin refuses a vLLM that it was not written for."""

import pytest

from service.engine.plugin.guard import PluginError, check_version, checked_attribute, is_patched, mark_patched


class Patched:
    def plain(self, scheduler_output: object, model_runner_output: object) -> None: ...

    @classmethod
    def of_class(cls, name: str) -> None: ...

    @property
    def asked(self) -> bool:
        return False


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0rc1"])
def test_a_supported_version_passes(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.32.0", "dev"])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(PluginError, match=r"0\.32\.x"):
        check_version(version)


def test_expect_gives_the_attribute_as_it_stands_in_the_class() -> None:
    assert checked_attribute(Patched, "plain", "self", "scheduler_output") is Patched.__dict__["plain"]
    assert isinstance(checked_attribute(Patched, "of_class", "cls", "name"), classmethod)
    assert isinstance(checked_attribute(Patched, "asked"), property)


@pytest.mark.parametrize(
    ("name", "parameters"), [("gone", ()), ("plain", ("self", "output")), ("of_class", ("cls", "name", "more"))]
)
def test_expect_refuses_what_is_missing_or_takes_other_parameters(name: str, parameters: tuple[str, ...]) -> None:
    with pytest.raises(PluginError, match=name):
        checked_attribute(Patched, name, *parameters)


def test_our_own_functions_are_known_again() -> None:
    assert not is_patched(Patched.plain)
    assert is_patched(mark_patched(lambda: None))
