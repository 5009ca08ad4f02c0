"""Checks before a patch: vLLM must be the vLLM that the patch was written for."""

from __future__ import annotations

import inspect
import re
from typing import Any

SUPPORTED = ((0, 32), (0, 33))
"""Minor versions of vLLM whose sources the patches were checked against in shape; others are refused."""


class PluginError(RuntimeError):
    """The plugin cannot protect this engine; the message names what is not as expected."""


def check_version(version: str | None = None) -> None:
    """Refuse a vLLM of another minor version.

    Args:
        version: For tests; vLLM's own otherwise.

    Raises:
        PluginError: The version is not supported.
    """
    if version is None:
        import vllm

        version = str(vllm.__version__)
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) not in SUPPORTED:
        supported = ", ".join(f"{major}.{minor}.x" for major, minor in SUPPORTED)
        raise PluginError(f"vLLM {version} is not supported by Hatrack's plugin (supported: {supported})")


def checked_attribute(owner: Any, name: str, *parameters: str) -> Any:
    """The attribute `name` of a class or module, after a look at its signature.

    Args:
        owner: The class or module that is about to be patched.
        name: The attribute.
        parameters: The first parameters that it must take, in order; none given: only that it exists.

    Returns:
        The attribute as it stands in `owner`.

    Raises:
        PluginError: It is missing or takes other parameters.
    """
    qualified_name = f"{getattr(owner, '__module__', '')}.{getattr(owner, '__name__', owner)}.{name}".lstrip(".")
    attribute = inspect.getattr_static(owner, name, None)
    if attribute is None:
        raise PluginError(f"{qualified_name} does not exist in this vLLM; the engine would run without containment")
    if parameters:
        function = attribute.__func__ if isinstance(attribute, classmethod | staticmethod) else attribute
        actual = tuple(inspect.signature(function).parameters)
        if actual[: len(parameters)] != parameters:
            raise PluginError(
                f"{qualified_name} takes {actual}, not {parameters}; the engine would run without containment"
            )
    return attribute


def is_patched(function: Any) -> bool:
    """True for a function that this plugin has put in place."""
    return getattr(function, "__hatrack__", False) is True


def mark_patched(function: Any) -> Any:
    """Mark a function as put in place by this plugin, so that a second registration leaves it."""
    function.__hatrack__ = True
    return function
