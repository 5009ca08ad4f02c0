"""`login`, `logout` and `profiles`: saved gateways, so that the command works from any folder."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Final

import typer

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient
from service.client.addresses import on_this_machine
from service.client.profiles import DEFAULT_PROFILE, Profile, Profiles, chosen_profile
from service.client.settings import ClientSettings

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MAX_KEY_CHARS: Final = 4096


def profile_name(text: str | None) -> str | None:
    """Check a profile's name; a mistake is a usage error."""
    if text is not None and not NAME.fullmatch(text):
        raise typer.BadParameter(f"{text!r}: a profile's name has 1 to 64 letters, digits, `.`, `_` and `-`.")
    return text


ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="The profile's name. [default: default]", callback=profile_name),
]


def login(
    url: Annotated[str, typer.Argument(help="The gateway's address, such as https://hatrack.example.com.")],
    profile: ProfileName = None,
    project: Annotated[str | None, typer.Option(help="The project that an admin's key acts in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save a gateway and a key, so that the command works from any folder.

    The key is read from HATRACK_KEY, at a prompt, or from stdin if that is not a terminal; never from an argument,
    which others on this machine could see. It is tried first, and saved in a file that only you may read.
    """
    name = profile or chosen_profile.get() or DEFAULT_PROFILE
    with terminal.reporting(as_json):
        key = _key()
        with HatrackClient(base_url=url, api_key=key, project=project) as client:
            models = list(client.models.list())
            saved = Profile(client.url, key, project)
        profiles = ClientSettings().profiles.with_profile(name, saved)
        profiles.write()
    if as_json:
        terminal.print_json(_shown(profiles, name))
        return
    base = f", which serves {models[0]['id']}" if models else ""
    typer.echo(terminal.clean(f"Logged in to {saved.url}{base}. Saved as the profile {name} in {profiles.path}."))
    if saved.url.startswith("http:") and not on_this_machine(saved.url):
        typer.echo(
            "warning: the key travels unencrypted to this address; use https outside a trusted network", err=True
        )


def _key() -> str:
    """The key to save. Raises ClientError `key_missing`."""
    given = ClientSettings().key
    key = "" if given is None else given.get_secret_value().strip()
    if not key and sys.stdin.isatty():
        key = typer.prompt("API key", hide_input=True, err=True).strip()
    elif not key:
        key = sys.stdin.readline(MAX_KEY_CHARS).strip()
    if not key:
        message = "No key was given. Set HATRACK_KEY, write the key to stdin, or run the command at a terminal."
        raise ClientError(0, "key_missing", message)
    return key


def logout(profile: ProfileName = None, as_json: AsJson = False) -> None:
    """Delete a saved gateway with its key, by default the current one. The key itself stays valid."""
    with terminal.reporting(as_json):
        profiles = ClientSettings().profiles
        name = profile or chosen_profile.get() or profiles.current
        if name is None:
            raise ClientError(0, "profile_not_found", "No profile is the current one; name one with --profile.")
        profiles.without(name).write()
    if as_json:
        terminal.print_json({"deleted": name})
    else:
        typer.echo(terminal.clean(f"Deleted the profile {name}. To make its key invalid: hatrack keys rm ID"))


def profiles(
    use: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make this profile the current one.", callback=profile_name)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the saved gateways. The current one counts where neither --profile nor HATRACK_URL names another."""
    with terminal.reporting(as_json):
        found = ClientSettings().profiles
        if use is not None:
            found = found.using(use)
            found.write()
    if as_json:
        terminal.print_json([_shown(found, name) for name in sorted(found.saved)])
    elif found.saved:
        rows = [
            ("*" if name == found.current else "", name, each.url, each.project or "-", _hint(each.key))
            for name, each in sorted(found.saved.items())
        ]
        terminal.print_table(("", "PROFILE", "GATEWAY", "PROJECT", "KEY"), rows)
    else:
        typer.echo("No profile is saved. Run `hatrack login URL` to save one.")


def _shown(profiles: Profiles, name: str) -> dict[str, object]:
    profile = profiles.saved[name]
    shown = {"profile": name, "url": profile.url, "project": profile.project, "key": _hint(profile.key)}
    return shown | {"current": name == profiles.current, "file": str(profiles.path)}


def _hint(key: str | None) -> str:
    """Enough of a key to tell it from others."""
    return "-" if not key else f"…{key[-4:]}" if len(key) >= 16 else "…"
