"""Grounding made from the settings: the providers, and the hook over them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.config import Settings, model_context
from service.grounding.config import WEBHOOK
from service.grounding.hook import Hook
from service.grounding.plugins import load_plugins
from service.grounding.provider import Provider
from service.grounding.template import PassageFormatter, control_tokens
from service.grounding.webhook import Webhook


@dataclass(frozen=True, slots=True)
class Grounding:
    """The hook, and the webhook if one is configured."""

    hook: Hook
    webhook: Webhook | None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Close the webhook's connections on leaving."""
        try:
            yield
        finally:
            if self.webhook is not None:
                await self.webhook.close()


def assemble(bases: Sequence[Settings], secret: bytes, builtin_providers: Mapping[str, Provider]) -> Grounding:
    """Create the providers and the hook from the settings.

    Args:
        bases: The settings of each base; the first one's are the gateway's.
        secret: Key of the hash that makes the delimiters around passages; must stay the same across restarts.
        builtin_providers: The gateway's own providers by name, besides the webhook and those that packages register.

    Raises:
        SettingsError: The webhook's address is not allowed, or a package's provider cannot be loaded.
    """
    settings, webhook = bases[0], None
    contexts = [base.context or model_context(base.base_dir) for base in bases]
    known = [context for context in contexts if context is not None]
    tokens = dict.fromkeys(token for base in bases for token in control_tokens(base.base_dir))
    if settings.grounding_url and settings.grounding_secret is not None:
        webhook = Webhook(
            settings.grounding_url, settings.grounding_secret.get_secret_value(), settings.grounding_networks
        )
    providers: dict[str, Provider] = {**builtin_providers, **load_plugins()}
    if webhook is not None:
        providers[WEBHOOK] = webhook
    hook = Hook(
        providers,
        PassageFormatter(secret, tuple(tokens)),
        context=min(known) if len(known) == len(bases) else None,
        on_failure=settings.grounding_on_failure,
        timeout_s=settings.grounding_timeout_s,
        min_score=settings.min_passage_score,
    )
    return Grounding(hook, webhook)
