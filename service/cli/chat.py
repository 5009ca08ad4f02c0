"""`chat`: talk to the base or to an adapter; one question, or a conversation on a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.wording import counted
from service.cli import terminal
from service.cli.completion import complete_model, complete_store
from service.cli.grounding import InsertAs, set_grounding
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient, JsonObject

if TYPE_CHECKING:
    from service.client.types.gateway import Citation

_HELP: Final = "/exit quits, /reset clears the conversation, /system TEXT sets the system prompt and clears it."


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="The base's name, brand-voice, brand-voice@3 or brand-voice:canary.", autocompletion=complete_model
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="One question.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of the answer, tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Sampling temperature.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.")] = None,
    kb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE", help="Ground answers in a knowledge base; repeatable.", autocompletion=complete_store
        ),
    ] = None,
    kb_as: InsertAs = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="NAME=VALUE", help="Only passages of documents with this attribute; repeatable."
        ),
    ] = None,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print what the model would be sent, and do not ask it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Chat with a model. With PROMPT or text on stdin: print one answer. Otherwise: start a conversation."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    params: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    # A given prompt wins over stdin, which a scheduler may leave open for ever.
    question = " ".join(prompt) if prompt else None if sys.stdin.isatty() else sys.stdin.read().strip()
    if question == "":
        raise typer.BadParameter("No prompt: pass one as an argument or pipe it in.", param_hint="PROMPT")
    if question is None and as_json:
        raise typer.BadParameter("--json requires a PROMPT.", param_hint="--json")
    if question is None and show_prompt:
        raise typer.BadParameter("--show-prompt requires a PROMPT.", param_hint="--show-prompt")
    with terminal.reporting(as_json), HatrackClient() as client:
        set_grounding(params, client, kb, kb_as)
        if filters:
            values = terminal.attributes_option("--filter", filters)
            params["grounding"] = params.get("grounding", {}) | _filters(values)
        if show_prompt and question is not None:
            _show_prompt(client, model, system, question, params, as_json=as_json)
            return
        talk = Conversation(client, model, system, params)
        if question is None:
            _converse(talk)
            return
        answer = talk.ask(question, echo=not as_json)
    if as_json:
        result: JsonObject = {"model": model, "content": answer}
        terminal.print_json(result | {"citations": talk.cited} if talk.cited else result)


def _filters(values: Mapping[str, str | float | bool]) -> JsonObject:
    """The member `filters` of a request's `grounding`: each attribute has its value."""
    conditions = [{"type": "eq", "key": name, "value": value} for name, value in values.items()]
    return {"filters": {"type": "and", "filters": conditions}}


def _show_prompt(
    client: HatrackClient, model: str, system: str | None, question: str, params: dict[str, Any], *, as_json: bool
) -> None:
    """Print the messages as the engine would get them, each under its role, and the sampling parameters."""
    messages = [{"role": "system", "content": system}] if system else []
    rendered = client.chat.render(model, [*messages, {"role": "user", "content": question}], **params)
    if as_json:
        terminal.print_json(rendered)
        return
    for message in rendered["messages"]:
        typer.secho(f"{message['role']}:", bold=True)
        typer.echo(f"{terminal.clean(str(message['content']))}\n")
    parameters = ", ".join(f"{name} {value}" for name, value in rendered["parameters"].items())
    typer.echo(f"parameters: {parameters or 'none'}", err=True)
    if rendered["grounding"] is not None:
        grounding = rendered["grounding"]
        typer.echo(f"retrieval: {grounding['outcome']}, {counted(len(grounding['citations']), 'passage')}", err=True)


class Conversation:
    """The messages exchanged with one model."""

    def __init__(self, client: HatrackClient, model: str, system: str | None, params: dict[str, Any]) -> None:
        self.model = model
        self.cited: list[Citation] = []
        """What the latest answer was grounded on."""
        self._client = client
        self._params = params
        self._messages: list[dict[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Remove all messages, and the system prompt if a new one is given."""
        system_messages = [message for message in self._messages if message["role"] == "system"]
        self._messages = [{"role": "system", "content": system}] if system else system_messages

    def ask(self, question: str, *, echo: bool = True) -> str:
        """Put a question, print the answer as it comes, and remember both.

        An answer that Ctrl-C cuts short is remembered as far as it came; after an error the question is forgotten.

        Raises:
            ClientError: The gateway refused, or the answer broke off.
        """
        self._messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        stream = self._client.chat.stream(self.model, self._messages, **self._params)
        self.cited = stream.citations
        try:
            for piece in stream:
                pieces.append(piece)
                if echo:
                    typer.echo(terminal.clean(piece), nl=False)
                    sys.stdout.flush()
        except ClientError:
            self._messages.pop()
            if pieces and echo:
                typer.echo()
            raise
        except KeyboardInterrupt:
            stream.close()
            if pieces:
                self._messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self._messages.pop()
            raise
        answer = "".join(pieces)
        self._messages.append({"role": "assistant", "content": answer})
        if echo:
            typer.echo()
            for citation in self.cited:
                unused = " (not used)" if citation.get("used") is False else ""
                typer.echo(f"[{citation.get('index')}] {terminal.clean(str(citation.get('source')))}{unused}", err=True)
        return answer


def _converse(talk: Conversation) -> None:
    """Questions from a terminal until /exit or end of input; an error ends its answer, not the conversation."""
    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")  # its import gives input() line editing and the arrow keys
    typer.echo(f"Talking to {talk.model}. {_HELP}", err=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            _obey(talk, line)
        elif line:
            _answer(talk, line)


def _obey(talk: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/reset" or (command == "/system" and rest.strip()):
        talk.reset(rest.strip() or None)
    else:
        typer.echo(_HELP, err=True)


def _answer(talk: Conversation, line: str) -> None:
    try:
        talk.ask(line)
    except ClientError as error:
        terminal.print_error(error)
    except KeyboardInterrupt:
        typer.echo("\n(stopped)", err=True)
