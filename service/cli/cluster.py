"""``hatrack cluster``: agents on Ray Serve. It speaks to Ray's dashboard; Ray itself runs in processes of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.markup import escape

from service.cli import terminal
from service.cli.run import console, fail
from service.cli.terminal import AsJson, examples
from service.client import ClientError, HatrackClient
from service.client.addresses import is_loopback
from service.config import inherited_environment
from service.server.private import UMASK

app = typer.Typer(no_args_is_help=True, help="Agents on Ray Serve: start, show and end them (deploy/CLUSTER.md).")
APPLICATIONS: Final = "/api/serve/applications/"
POLL_S: Final = 1.0
TIMEOUTS_S: Final = {"GET": 60.0, "PUT": 300.0, "DELETE": 300.0}
"""How long an answer may take, s: the first deployment also starts Serve."""
LAST_ANSWER_S: Final = 5.0
"""How long an answer may take that is asked for shortly before a deadline, s."""
START_S: Final = 120.0
"""How long Ray's head may take until its dashboard answers, s."""
SETTLED: Final = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")
IMPORT_PATH: Final = "service.cluster.application:agents"
"""Of Hatrack's applications."""

Dashboard = Annotated[
    str,
    typer.Option(help="Ray's dashboard.", envvar="RAY_DASHBOARD_ADDRESS", show_envvar=True, metavar="URL"),
]
LOCAL: Final = "http://127.0.0.1:8265"


@app.command(epilog=examples("hatrack cluster up deploy/ray/serve.yaml --head 127.0.0.1"))
def up(
    config: Annotated[
        Path, typer.Argument(help="Serve config, such as deploy/ray/serve.yaml.", exists=True, dir_okay=False)
    ],
    dashboard: Dashboard = LOCAL,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Start Ray's head on this machine first, at this address, a loopback or private one. "
            "[default: Ray runs already]",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until its agents are in use.")] = True,
    timeout: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="How long to wait at most for the next agent; the deployment goes on after that.",
        ),
    ] = 1800,
) -> None:
    """Deploy agents on a Ray cluster, or change those that run: Serve replaces them one after another."""
    require_ray()
    wanted = read_config(config)
    if head is not None:
        host = f"[{head}]" if ":" in head else head
        dashboard = f"http://{host}:8265" if dashboard == LOCAL else dashboard
        start_head(head, dashboard)
    with ray_dashboard(dashboard) as http:
        named = {str(each["name"]) for each in wanted["applications"]}
        if gone := [name for name in others(ask(http, "GET")["applications"], "declarative") if name not in named]:
            fail(
                f"Serve would end what {escape(str(config))} does not have: {escape(', '.join(gone))}, which "
                "is not Hatrack's; add it to the file (`serve config` prints it)"
            )
        ask(http, "PUT", wanted)
        console.print(f"deployed {', '.join(str(each['name']) for each in wanted['applications'])}")
        if wait:
            _print(told := until_settled(http, [str(each["name"]) for each in wanted["applications"]], timeout))
            if any(each["status"] != "RUNNING" for each in told["applications"]):
                raise typer.Exit(terminal.FAILED)


def until_settled(http: httpx.Client, names: list[str], timeout_s: float) -> dict[str, Any]:
    """What Serve says of applications once all run or have failed; what they wait for is shown meanwhile.

    A dashboard that does not answer, or fails, is asked again: Ray's head may be starting anew, and Serve goes on. Ends
    the command when no agent has come or gone for ``timeout_s``; the deployment is left as it is.
    """
    deadline = time.monotonic() + timeout_s
    waits_for, shown_last = "nothing yet", ""
    running: set[str] = set()
    while True:
        trouble = ""
        patience_s = min(TIMEOUTS_S["GET"], max(deadline - time.monotonic(), LAST_ANSWER_S))
        try:
            known = request(http, "GET", timeout_s=patience_s)["applications"]
        except DashboardFailed as error:
            trouble = str(error)
        else:
            told = shown([known.get(name, {"name": name, "status": "NOT_STARTED"}) for name in names])
            rows = told["applications"]
            if all(each["status"] in SETTLED for each in rows):
                return told
            if (now_running := _running(rows)) != running:
                running, deadline = now_running, time.monotonic() + timeout_s
            waits_for = "; ".join(f"{each['name']}: {each['message'] or each['status']}" for each in rows)[:1000]
        if (now := trouble or waits_for) != shown_last:
            console.print(escape(f"waiting: {now}"))
            shown_last = now
        if time.monotonic() >= deadline:
            lines = (
                f"not all agents are in use, and for {timeout_s:g} s none has come or gone (--timeout)",
                f"Serve says: {waits_for}",
                trouble,
                "The deployment goes on: `hatrack cluster status` shows it, `hatrack cluster down` ends it",
            )
            fail(escape("\n".join(line for line in lines if line)))
        time.sleep(POLL_S)


def _running(rows: list[dict[str, Any]]) -> set[str]:
    """The replicas that run."""
    return {one["id"] for each in rows for one in each["replicas"] if one["state"] == "RUNNING"}


@app.command(epilog=examples("hatrack cluster status", "hatrack cluster status --json | jq .applications"))
def status(dashboard: Dashboard = LOCAL, as_json: AsJson = False) -> None:
    """Show the agents that run on Ray, and what the gateway has of them. Exit code 0 means that all are in use."""
    require_ray()
    with ray_dashboard(dashboard) as http:
        told = shown(ask(http, "GET")["applications"].values())
    told["engines"], told["gateway"] = _engines()
    if as_json:
        terminal.print_json(told)
    else:
        _print(told)
    if not told["applications"] or any(each["status"] != "RUNNING" for each in told["applications"]):
        raise typer.Exit(terminal.FAILED)


@app.command(epilog=examples("hatrack cluster down", "hatrack cluster down --node"))
def down(
    dashboard: Dashboard = LOCAL,
    node: Annotated[bool, typer.Option("--node", help="Also end all of Ray on this machine (`ray stop`).")] = False,
) -> None:
    """End all agents on Ray: their requests may end, and then their engines do. Gateway and fronts go on."""
    require_ray()
    with ray_dashboard(dashboard) as http:
        if kept := others(ask(http, "GET")["applications"], "declarative", "imperative"):
            fail(
                f"this would end all of Serve, which also runs {escape(', '.join(kept))}; to end the agents alone, "
                "deploy a Serve config that has the others only (`serve deploy`)"
            )
        ask(http, "DELETE")
        console.print("the agents end")
    if node:
        run_ray("stop", "--grace-period", "60")


def others(applications: Mapping[str, Any], *sources: str) -> list[str]:
    """The applications that Serve runs and that are not Hatrack's, of those that were deployed in these ways.

    One that is being deleted has no config any more, and ends anyway.
    """
    return [
        name
        for name, each in applications.items()
        if each.get("source") in sources
        and each.get("status") != "DELETING"
        and (each.get("deployed_app_config") or {}).get("import_path") != IMPORT_PATH
    ]


def require_ray() -> None:
    """End the command if the extra `cluster` is not installed."""
    if find_spec("ray") is None:
        fail(escape("Ray is not installed here: pip install 'hatrack[cluster]' (deploy/CLUSTER.md)"))


def read_config(path: Path) -> dict[str, Any]:
    """The Serve config; ends the command if it is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fail(escape(f"{path} cannot be read as YAML: {error}"))
    applications = content.get("applications") if isinstance(content, dict) else None
    is_config = isinstance(applications, list) and all(
        isinstance(each, dict) and "name" in each for each in applications
    )
    if not is_config:
        fail(f"{path} is no Serve config: it must have `applications`, a list with a `name` each")
    return dict(content)


def start_head(address: str, dashboard: str) -> None:
    """Start Ray's head on this machine, at an address that only private networks reach; it asks for a token."""
    mode = inherited_environment().get("RAY_AUTH_MODE", "token")
    if mode != "token":
        fail(
            f"RAY_AUTH_MODE is {mode}: whoever reaches Ray runs code in it, and replicas of Ray Serve listen on all of "
            "the machine's addresses; unset it, and Ray asks for a token (deploy/CLUSTER.md)"
        )
    if not is_closed(address):
        fail(
            f"--head must be a loopback or private IP address of this machine, such as 127.0.0.1 or 10.0.0.5; got "
            f"{escape(repr(address[:80]))}: Ray's dashboard and ports listen there (deploy/CLUSTER.md)"
        )
    make_token()
    arguments, variables = head_command(address, dashboard)
    run_ray(*arguments, variables=variables)
    deadline = time.monotonic() + START_S
    with ray_dashboard(dashboard) as http:
        while time.monotonic() < deadline:
            try:
                if http.get("/api/version").status_code < 500:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
    fail(f"Ray's dashboard does not answer at {dashboard} after {START_S:g} s; see /tmp/ray/session_latest/logs")


def is_closed(address: str) -> bool:
    """Whether an address is an IP address that the internet does not reach, and is not all of a machine's."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return not (ip.is_global or ip.is_unspecified or ip.is_multicast)


def make_token() -> None:
    """Make Ray's token where there is none, for the eyes of this user alone."""
    run_ray("get-auth-token", "--generate", shows=False)


def head_command(address: str, dashboard: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of `ray` that start a head, and variables for its environment."""
    port = httpx.URL(dashboard).port or 8265
    arguments = ["start", "--head", "--node-ip-address", address, "--dashboard-host", address]
    arguments += ["--dashboard-port", str(port), "--disable-usage-stats"]
    # on Linux Ray takes a loopback address for the machine's own, and listens on all of them; not so where it is told
    # that there are no other nodes, in this variable of another name
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if is_loopback(address) else {}
    return arguments, {"RAY_AUTH_MODE": "token", **alone}


def run_ray(*arguments: str, shows: bool = True, variables: Mapping[str, str] | None = None) -> None:
    """Run Ray's own command, with further variables in its environment; ends this one if that fails."""
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    environment = {**inherited_environment(), **(variables or {})}
    stdout = None if shows else subprocess.DEVNULL
    done = subprocess.run(command, env=environment, stdout=stdout, check=False, umask=UMASK)  # Ray's token is a file
    if done.returncode != 0:
        fail(f"`ray {' '.join(arguments)}` failed with exit code {done.returncode}; see its output above")


def ray_dashboard(address: str) -> httpx.Client:
    """A client for Ray's dashboard, with the cluster's token where there is one."""
    token = _token()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=address, headers=headers, timeout=TIMEOUTS_S["GET"])


def _token() -> str | None:
    """Where Ray looks for it, in its order."""
    environment = inherited_environment()
    if given := environment.get("RAY_AUTH_TOKEN"):
        return given
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text("utf-8").strip() or None
    except OSError:
        return None


class DashboardFailed(Exception):
    """Ray's dashboard does not answer, or has an error of its own; the message says which."""


def ask(http: httpx.Client, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask Serve's REST API; ends the command if it refuses or does not answer."""
    try:
        return request(http, method, body, timeout_s=TIMEOUTS_S[method])
    except DashboardFailed as error:
        fail(escape(str(error)))


def request(http: httpx.Client, method: str, body: dict[str, Any] | None = None, *, timeout_s: float) -> dict[str, Any]:
    """Ask Serve's REST API; ends the command if it refuses.

    Raises:
        DashboardFailed: It may answer if it is asked again.
    """
    try:
        answer = http.request(method, APPLICATIONS, json=body, timeout=timeout_s)
    except httpx.TransportError as error:
        raise DashboardFailed(
            f"Ray's dashboard does not answer at {http.base_url} ({type(error).__name__}): start Ray "
            "(`hatrack cluster up CONFIG --head 127.0.0.1`), or give its address with --dashboard"
        ) from error
    if answer.status_code >= 500:
        raise DashboardFailed(f"Ray Serve fails with status {answer.status_code}: {answer.text[:1000]}")
    if answer.status_code in (401, 403):
        fail("Ray's dashboard asks for the cluster's token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file")
    if not answer.is_success:
        fail(escape(f"Ray Serve refuses with status {answer.status_code}: {answer.text[:1000]}"))
    told = answer.json() if method == "GET" else {}
    return {"applications": {}, **told}


def brief(message: str) -> str:
    """A message of Serve's without its traceback: the first line, and the last, which has the reason."""
    lines = message.strip().splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1].strip()}"


def shown(applications: Any) -> dict[str, Any]:
    """What `status` shows of Serve's answer."""
    rows = []
    for each in applications:
        deployments = each.get("deployments", {}).values()
        replicas = [replica for deployment in deployments for replica in deployment.get("replicas", ())]
        messages = [each.get("message", ""), *(deployment.get("message", "") for deployment in deployments)]
        rows.append(
            {
                "name": each["name"],
                "status": each["status"],
                "message": " ".join(brief(message) for message in messages if message.strip()),
                "wanted": sum(deployment.get("target_num_replicas") or 0 for deployment in deployments),
                "replicas": [
                    {"id": replica.get("replica_id"), "state": replica.get("state"), "node": replica.get("node_ip")}
                    for replica in replicas
                ],
            }
        )
    return {"applications": rows}


def _engines() -> tuple[list[dict[str, Any]], str | None]:
    """The engines as the gateway of this command's settings has them, and its address; none without it."""
    try:
        with HatrackClient() as client:
            return [dict(each) for each in client.ready().get("engines") or ()], client.url
    except ClientError:
        return [], None


def _print(told: dict[str, Any]) -> None:
    rows: list[tuple[str, str]] = []
    for each in told["applications"]:
        running = sum(replica["state"] == "RUNNING" for replica in each["replicas"])
        rows.append(("application", f"{each['status']}  {each['name']}, {running} of {each['wanted']} agents run"))
        if each["message"]:
            rows.append(("", each["message"][:1000]))
        rows += [("agent", f"{one['state']}  on {one['node'] or '-'}  ({one['id']})") for one in each["replicas"]]
    for engine in told.get("engines", ()):
        rows.append(("engine", f"{engine['state']}  {engine['name']}, for {engine['base']}  ({engine['reason']})"))
    if "gateway" in told and told["gateway"] is None:
        rows.append(("gateway", "does not answer (HATRACK_URL)"))
    for name, value in rows or [("application", "none")]:
        typer.echo(terminal.clean(f"{name:<12} {value}"))
