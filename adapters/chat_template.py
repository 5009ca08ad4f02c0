"""The chat template that a base is served, trained and judged with.

It is the checkpoint's own, with one exception. Some templates refuse a system message (Gemma 2 raises "System role not
supported") or drop it without a word. Versions have system prompts, and so have examples and requests: for such a
base the system message becomes the beginning of the first user message, followed by an empty line. It is the template
that is changed, so whoever renders with it, the engine as the trainer, does the same.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapters.basefiles import template_of

MERGE_SYSTEM: Final = """\
{%- if messages and messages[0]['role'] == 'system' and messages | length > 1 and messages[1]['role'] == 'user' -%}
{%- set instructions, request = messages[0]['content'], messages[1]['content'] -%}
{%- if instructions is string and request is string -%}
{%- set request = instructions + '\\n\\n' + request -%}
{%- else -%}
{%- set before = [{'type': 'text', 'text': instructions}] if instructions is string else instructions -%}
{%- set after = [{'type': 'text', 'text': request}] if request is string else request -%}
{%- set request = before + [{'type': 'text', 'text': '\\n\\n'}] + after -%}
{%- endif -%}
{%- set messages = [{'role': 'user', 'content': request}] + messages[2:] -%}
{%- endif %}
"""
"""Goes before a template that does not render a system message."""

MAX_TEMPLATE_BYTES: Final = 1024 * 1024

_SYSTEM: Final = "Sentinel of the system message."
_USER: Final = "Sentinel of the user message."


def served_template(model_dir: Path) -> str | None:
    """The template to use instead of the checkpoint's own; None if that is used as it is, or if there is none.

    A checkpoint with several named templates keeps them.
    """
    own = template_of(model_dir).get("template")
    if own is None or len(own) > MAX_TEMPLATE_BYTES:
        return None
    return merged_template(own.decode("utf-8", "replace"))


@lru_cache(maxsize=8)
def merged_template(template: str) -> str | None:
    """`template` with system messages merged into the first user message, if it does not render them itself; None if
    it does, or if it fails for other reasons."""
    if _renders(template, system=False) and not _renders(template, system=True):
        merged = MERGE_SYSTEM + template
        if _renders(merged, system=True):
            return merged
    return None


def _renders(template: str, *, system: bool) -> bool:
    """Whether the template renders a question, with or without a system message, and loses no message of it."""
    messages = [{"role": "user", "content": _USER}]
    if system:
        messages.insert(0, {"role": "system", "content": _SYSTEM})
    try:
        text = (
            _environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="", tools=None)
        )
    except Exception:
        return False
    return all(message["content"] in text for message in messages)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers renders chat templates with (`transformers.utils.chat_template_utils`)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


class _Generation(Extension):
    """`{% generation %}`, which marks answers in a template and changes nothing in its output."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
