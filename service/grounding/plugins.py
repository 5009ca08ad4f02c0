"""Providers of other packages: each installed entry point of the group ``hatrack.grounding`` is one.

Its name is the provider's; its object is called without arguments and gives a `service.grounding.provider.Provider`.
Packages are the operator's to install, so all of them are loaded, and one that cannot be is a start-up mistake.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from service.errors import SettingsError
from service.grounding.config import EMBEDDED, PROVIDER_NAME, WEBHOOK
from service.grounding.provider import Provider

GROUP: Final = "hatrack.grounding"


def load_plugins() -> dict[str, Provider]:
    """The providers of all installed packages, by name.

    Raises:
        SettingsError: One cannot be loaded, is no provider, or has a name that cannot be used.
    """
    providers: dict[str, Provider] = {}
    for point in entry_points(group=GROUP):
        if point.name in (EMBEDDED, WEBHOOK, *providers) or not PROVIDER_NAME.fullmatch(point.name):
            raise SettingsError(
                f"the grounding provider {point.value!r} cannot be named {point.name!r}: this name is reserved, "
                "taken or malformed"
            )
        providers[point.name] = _load(point)
    return providers


def _load(point: EntryPoint) -> Provider:
    try:
        provider = point.load()()
    except Exception as error:
        raise SettingsError(
            f"the grounding provider {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(provider, Provider):
        raise SettingsError(f"the grounding provider {point.name!r} ({point.value}) has no method `retrieve`")
    return provider
