"""The `hatrack` command. All but the process commands speak HTTP to a gateway and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from service import __version__
from service.cli import (
    access,
    advise,
    batch,
    chat,
    cost,
    data,
    evaluate,
    export,
    full_product,
    jobs,
    kb,
    profiles,
    pull,
    rebase,
    registry,
    revalidate,
    review,
    show,
    status,
    top,
    traffic,
    train,
    usage,
)
from service.cli.apply import command as apply
from service.cli.from_openai import command as from_openai
from service.cli.terminal import examples
from service.client.profiles import chosen_profile

app = typer.Typer(
    name="hatrack",
    help="One base model, many hats: serve LoRA adapters from one engine.",
    epilog=(
        "\b\nEnvironment:\n"
        "  HATRACK_URL      the gateway [default: the profile that `hatrack login` saved,\n"
        "                   else OPENAI_BASE_URL with OPENAI_API_KEY\n"
        "                   unless HATRACK_KEY is set,\n"
        "                   else http://127.0.0.1:8000]\n"
        "  HATRACK_KEY      the API key [default: the profile's for its gateway,\n"
        "                   OPENAI_API_KEY for OPENAI_BASE_URL,\n"
        "                   else admin.key under HATRACK_HOME for a gateway on this machine]\n"
        "  HATRACK_PROJECT  the project in which an admin key acts [default: default]\n"
        "  HATRACK_PROFILE  the saved profile [default: the current one]\n\n"
        "\b\nExit codes:\n"
        "  0 done   1 refused or failed   2 wrong usage   3 cannot connect   4 not enough evidence"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hatrack {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use this saved profile; HATRACK_URL, HATRACK_KEY and HATRACK_PROJECT do not count then.",
            callback=profiles.profile_name,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """One base model, many hats: serve LoRA adapters from one engine."""
    token = chosen_profile.set(profile)
    context.call_on_close(lambda: chosen_profile.reset(token))


app.command(
    epilog=examples("hatrack up", "HATRACK_BASE_MODEL=/models/my-base hatrack up", "hatrack up --keep-engine"),
    context_settings=full_product.CONTEXT,
)(full_product.up)
app.command(
    epilog=examples(
        "hatrack serve",
        "HATRACK_PORT=9000 hatrack serve",
        "hatrack serve --keep-engine",
        "hatrack serve --trainer",
        "HATRACK_ENGINE_URL=http://127.0.0.1:8001 hatrack serve",
    ),
    context_settings=full_product.CONTEXT,
)(full_product.serve)
app.command(
    epilog=examples(
        "hatrack engine", "hatrack engine --host 0.0.0.0 --port 8001", "hatrack engine --uds /run/hatrack/engine.sock"
    ),
    context_settings=full_product.CONTEXT,
)(full_product.engine)
app.command(
    epilog=examples(
        "HATRACK_AGENT_KEY=… hatrack agent",
        "hatrack agent --host 10.0.0.5 --port 8002",
        "hatrack agent --name qwen-0 --uds /run/hatrack/qwen-0.sock",
    ),
    context_settings=full_product.CONTEXT,
)(full_product.agent)
app.command(
    epilog=examples(
        "HATRACK_FRONT_GATEWAY=http://10.0.0.4:8000 hatrack front",
        "hatrack front --host 0.0.0.0 --port 8010",
    ),
    context_settings=full_product.CONTEXT,
)(full_product.front)
app.add_typer(full_product.cluster, name="cluster")
app.command(epilog=examples("hatrack down", "hatrack down --keep-engine"), context_settings=full_product.CONTEXT)(
    full_product.down
)
app.command(epilog=examples("hatrack status", "hatrack status --json | jq .ready"))(status.status)
app.command(
    epilog=examples(
        "hatrack push brand-voice out/brand-voice",
        "hatrack push brand-voice out/brand-voice --alias canary",
        "hatrack push brand-voice hf://acme/brand-voice@v2",
        'hatrack push brand-voice out/brand-voice --system-prompt "You are the voice of the shop."',
        "hatrack push brand-voice out/brand-voice --no-wait --json | jq .version",
        "hatrack push support --system-prompt prompt.txt --examples few.jsonl --kb policies   (no weights)",
    )
)(registry.push)
app.command(epilog=examples("hatrack ls", "hatrack ls --json | jq -r '.[].name'"))(show.ls)
app.command(
    epilog=examples(
        "hatrack show brand-voice", "hatrack show brand-voice@3", "hatrack show brand-voice:canary --json | jq .verdict"
    )
)(show.show)
app.command(epilog=examples("hatrack promote brand-voice@3", "hatrack promote brand-voice@4 --alias canary"))(
    registry.promote
)
app.command(epilog=examples("hatrack rollback brand-voice", "hatrack rollback brand-voice --alias canary"))(
    registry.rollback
)
app.command(
    epilog=examples(
        "hatrack split brand-voice 3=90 4=10",
        "hatrack split brand-voice 3=1 4=1 --alias canary",
        "hatrack promote brand-voice@4   (ends the split)",
    )
)(traffic.split)
app.command(epilog=examples("hatrack pin brand-voice"))(traffic.pin)
app.command(epilog=examples("hatrack unpin brand-voice"))(traffic.unpin)
app.command(
    epilog=examples("hatrack rm brand-voice@2", "hatrack rm brand-voice@3 --force", "hatrack rm brand-voice --yes")
)(registry.rm)
app.command(
    epilog=examples(
        "hatrack chat brand-voice",
        "hatrack chat brand-voice@3 Where is my parcel?",
        "hatrack chat brand-voice --kb policies How long may I send things back?",
        "hatrack chat brand-voice < question.txt",
    )
)(chat.chat)
app.command(
    epilog=examples(
        "hatrack batch requests.jsonl --wait",
        "hatrack batch requests.jsonl --wait --out answers.jsonl",
        "hatrack batch batch_1a2b",
        "hatrack batch batch_1a2b --cancel",
    )
)(batch.batch)
app.command(epilog=examples("hatrack batches", "hatrack batches --json | jq '.[].request_counts'"))(batch.batches)
app.command(
    epilog=examples(
        "hatrack usage",
        "hatrack usage --by project,key --since 7d",
        "hatrack usage --by day --adapter brand-voice --since 4w",
        "hatrack usage --by version --json | jq '.[] | {adapter, version, requests}'",
    )
)(usage.usage)
app.command(
    epilog=examples(
        "hatrack cost",
        "hatrack cost --by project --since 7d",
        "hatrack cost --year brand-voice --requests-per-day 2000",
        "hatrack cost --by version --json | jq '.data[] | {adapter, version, money}'",
    )
)(cost.cost)
app.command(epilog=examples("hatrack budget", "hatrack budget acme 50", "hatrack budget acme --remove"))(cost.budget)
app.command(
    epilog=examples(
        "hatrack advise examples.jsonl --name support --quick",
        "hatrack advise support@3 --name support --docs policies/ --target 0.9",
        "hatrack advise examples.jsonl --name support --instructions prompt.txt --html advice.html",
    )
)(advise.advise)
app.command(
    epilog=examples(
        "hatrack advice", "hatrack advice ladder-1a2b --html advice.html", "hatrack advice ladder-1a2b --clean"
    )
)(advise.advice)
app.command(
    epilog=examples(
        "hatrack train examples.jsonl --name brand-voice",
        "hatrack train examples.jsonl --name brand-voice --held-out heldout.jsonl --set n_epochs=2",
        "hatrack train more.jsonl --name brand-voice --from brand-voice@3 --no-follow",
        "hatrack train support@3 --name brand-voice --save-recipe recipe.toml",
        "hatrack train --recipe recipe.toml",
        "hatrack train --again brand-voice@3",
        "hatrack train examples.jsonl --name brand-voice --estimate   (what it would cost)",
    )
)(train.train)
app.command(epilog=examples("hatrack rebase --to qwen3-4b --dry-run", "hatrack rebase support --to qwen3-4b --yes"))(
    rebase.rebase
)
app.command(epilog=examples("hatrack jobs", "hatrack jobs --json | jq '.[].id'"))(jobs.jobs)
app.command(
    epilog=examples("hatrack job ftjob-1a2b", "hatrack job ftjob-1a2b --follow", "hatrack job ftjob-1a2b --pause")
)(jobs.job)
app.command(
    epilog=examples(
        "hatrack revalidate --wait",
        "hatrack revalidate brand-voice@3 --wait",
        "hatrack revalidate --all --json | jq '.[].evaluation.id'",
    )
)(revalidate.revalidate)
app.command(
    epilog=examples(
        "hatrack evaluate brand-voice@3 --held-out heldout.jsonl",
        "hatrack evaluate brand-voice --held-out heldout.jsonl --metric exact_match --promote auto",
        "hatrack evaluate --arm old=brand-voice@2 --arm new=brand-voice@3 --held-out heldout.jsonl",
    )
)(evaluate.evaluate)
app.command(epilog=examples("hatrack evaluations", "hatrack evaluations --json | jq '.[].verdict'"))(
    evaluate.evaluations
)
app.command(
    epilog=examples(
        "hatrack report eval-1a2b",
        "hatrack report brand-voice@3 --html report.html",
        "hatrack report eval-1a2b --json | jq .verdict.checks",
    )
)(evaluate.report)
app.command(epilog=examples("hatrack review", "hatrack review eval-1a2b", "hatrack review --list"))(review.review)
app.command(
    epilog=examples(
        "hatrack apply hatrack.yaml --dry-run",
        "hatrack apply hatrack.yaml",
        "hatrack apply hatrack.yaml --yes --prune --json | jq -r '.keys.shop'",
    )
)(apply.apply)
app.add_typer(data.app, name="data")
app.add_typer(from_openai.app, name="import")
app.command(epilog=examples("hatrack lineage brand-voice@3"))(data.lineage)
app.command(epilog=examples("hatrack pull brand-voice@3 ./brand-voice-3"))(pull.pull)
app.command(
    epilog=examples(
        "hatrack export brand-voice@3 --merged ./brand-voice-3",
        "hatrack export brand-voice@3 --merged ./brand-voice-3 --base /models/my-base",
    )
)(export.export)
app.command(epilog=examples("hatrack top", "hatrack top --once", "hatrack top --json | jq .adapters"))(top.top)
app.command(
    epilog=examples(
        "hatrack login http://127.0.0.1:8000 < var/admin.key",
        "hatrack login https://hatrack.example.com --profile production",
        "hatrack --profile production ls",
    )
)(profiles.login)
app.command(epilog=examples("hatrack logout", "hatrack logout --profile production"))(profiles.logout)
app.command(epilog=examples("hatrack profiles", "hatrack profiles --use production"))(profiles.profiles)
app.add_typer(kb.app, name="kb")
app.add_typer(registry.alias, name="alias")
app.add_typer(access.keys, name="keys")
app.command(epilog=examples("hatrack audit", "hatrack audit --project acme --action alias.promote -n 50"))(access.audit)
app.command(
    epilog=examples("hatrack doctor", "hatrack doctor --json | jq '.checks[] | select(.result == \"failed\")'"),
    context_settings=full_product.CONTEXT,
)(full_product.doctor)
app.command(
    epilog=examples(
        "hatrack backup",
        "hatrack backup /backups",
        "hatrack backup --verify hatrack-20261128T020000Z.tar",
        "hatrack backup /backups/nightly.tar --json | jq .content_bytes",
    ),
    context_settings=full_product.CONTEXT,
)(full_product.backup)
app.command(
    epilog=examples("HATRACK_HOME=/srv/hatrack hatrack restore hatrack-20261128T020000Z.tar"),
    context_settings=full_product.CONTEXT,
)(full_product.restore)
app.command(
    epilog=examples("hatrack gc --dry-run", "hatrack gc", "hatrack gc --yes --json | jq .freed_bytes"),
    context_settings=full_product.CONTEXT,
)(full_product.gc)
app.command(
    "move-database",
    epilog=examples("HATRACK_DATABASE_URL=postgresql://hatrack:secret@db/hatrack hatrack move-database"),
    context_settings=full_product.CONTEXT,
)(full_product.move_database)
app.command(
    "move-store",
    epilog=examples("HATRACK_STORE_URL=s3://bucket/hatrack hatrack move-store"),
    context_settings=full_product.CONTEXT,
)(full_product.move_store)
app.command(epilog=examples("hatrack version"))(status.version)


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    app()
