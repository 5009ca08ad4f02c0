"""BANKING77 from file to accuracy, through a running Hatrack: upload, job, adapter, held-out questions.

    .venv/bin/hatrack serve --trainer                                       # in another terminal, or `make up`
    .venv/bin/python -m loadtests.training.accuracy --data banking77/train.csv --questions 500 --balanced
    .venv/bin/python -m loadtests.training.accuracy --data banking77/train.csv --examples 80 --intents 3 --epochs 3

Everything that is not given is `auto`. A question counts as right where the answer is the intent's name and nothing
else, greedy. Prints a line of JSON: share of right answers of the adapter and of the base, seconds, tokens, cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai

from loadtests.training.banking import balanced, jsonl, read, unlike
from service.client.addresses import without_v1
from service.client.settings import ClientSettings

AT_ONCE = 16
POLL_S = 2.0


def main() -> None:
    """Train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--intents", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--balanced", action="store_true", help="as many questions of each intent")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = ClientSettings()
    url = without_v1(settings.gateway_url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=settings.gateway_key(url))
    base = str(httpx.get(f"{url}/readyz").json()["base"])
    rows = read(options.data, seed=options.seed, intents=options.intents)
    count = min(options.questions, len(rows) - options.examples)
    unseen, rest = balanced(rows, count) if options.balanced else (rows[-count:], rows[:-count])
    taught = rest[: options.examples]
    unseen = unlike(unseen, taught)
    job = train(client, base, taught, options)
    asker = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=settings.gateway_key(url))
    adapter, alone = asyncio.run(both(asker, str(job["fine_tuned_model"]), base, unseen))
    measured = {
        "examples": options.examples,
        "questions": len(unseen),
        "adapter_right": adapter,
        "base_right": alone,
        "job_s": job["finished_at"] - job["created_at"],
        "trained_tokens": job["trained_tokens"],
        "recipe": job["hatrack"]["plan"]["recipe"] if job["hatrack"].get("plan") else job["hyperparameters"],
        "hatrack": {key: job["hatrack"].get(key) for key in ("seconds", "cost", "device")},
    }
    print(json.dumps(measured))


def train(client: openai.OpenAI, base: str, rows: Sequence[dict[str, str]], options: Any) -> dict[str, Any]:
    """Make a job of the rows and wait for it; the job object."""
    file = client.files.create(file=("banking.jsonl", jsonl(rows)), purpose="fine-tune")
    hyperparameters: Any = {} if options.epochs is None else {"n_epochs": options.epochs}
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        suffix=f"banking-{options.examples}-{int(time.time())}",
        seed=options.seed,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    )
    while True:
        time.sleep(POLL_S)
        now = client.fine_tuning.jobs.retrieve(job.id)
        last = client.fine_tuning.jobs.list_events(job.id, limit=1).data
        print(f"\r{now.status}: {last[0].message if last else ''}"[:118].ljust(118), end="", flush=True)
        if now.status in ("succeeded", "failed", "cancelled"):
            print()
            if now.status != "succeeded":
                raise SystemExit(f"the job {now.status}: {now.error}")
            ended: dict[str, Any] = now.model_dump()
            return ended


async def both(
    client: openai.AsyncOpenAI, adapter: str, base: str, rows: Sequence[dict[str, str]]
) -> tuple[float, float]:
    """The adapter's share over all rows, the base's over the first hundred."""
    return await share_right(client, adapter, rows), await share_right(client, base, rows[:100])


async def share_right(client: openai.AsyncOpenAI, model: str, rows: Sequence[dict[str, str]]) -> float:
    """The share of the rows whose question ``model`` answers with just the intent."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def right(row: dict[str, str]) -> bool:
        async with gate:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": row["prompt"]}],
                max_tokens=24,
                temperature=0,
            )
        return (answer.choices[0].message.content or "").strip() == row["completion"]

    scores = await asyncio.gather(*(right(row) for row in rows))
    return round(sum(scores) / len(scores), 4)


if __name__ == "__main__":
    main()
