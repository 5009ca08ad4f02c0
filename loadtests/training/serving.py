"""What callers notice of a training beside them: time to the first token with a job running and with it paused.

    .venv/bin/python -m loadtests.training.serving --data banking77/train.csv        # about nine minutes

Starts a gateway of its own with engine and trainer. Callers come at random times (Poisson), the base and an adapter in
turn. Short windows with the job and without it (its process stopped) take turns; both windows of a round have the same
arrivals and lengths, and no two prompts share a beginning that a cache could serve. Rounds count in which the rest of
the machine was quiet, whatever came out; all do where there are too few of these, and the output says so.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import openai
import psutil

from loadtests.support import KEY, Running, Timing, gateway, percentile, prompt, push, session, stream, write_json
from loadtests.training.banking import jsonl, read

REPO = Path(__file__).resolve().parents[2]
BASE = REPO / "var" / "base" / "smollm2-135m-instruct"
SAMPLE = REPO / "var" / "samples" / "tidewater"
WORDS, TOKENS = (12, 60), (8, 24)
"""Fewest and most words of a prompt (1.3 tokens each) and tokens of an answer."""
MODES = ("alone", "beside a job")
READY_S = 180.0
SETTLE_S = 1.0
QUIET_CORES = 0.35
"""What the rest of the machine may work in a window, cores."""
FEWEST_ROUNDS = 6


@dataclass
class Window:
    """What callers got in one mode, all rounds together, and what the job did meanwhile."""

    timings: list[Timing] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    others_s: float = 0.0
    held_up_s: float = 0.0
    """How long threads that serve could have run and had no core, all threads together."""

    def row(self) -> dict[str, float]:
        """The numbers; times in ms."""
        firsts = [timing.ttft_ms for timing in self.timings if timing.first]
        gaps = [(timing.end - timing.first) * 1000 / timing.tokens for timing in self.timings if timing.tokens]
        return {
            "requests": len(self.timings),
            "failed": sum(timing.status != 200 or not timing.first for timing in self.timings),
            "first_token_ms_p50": round(percentile(firsts, 0.5), 1),
            "first_token_ms_p90": round(percentile(firsts, 0.9), 1),
            "first_token_ms_p99": round(percentile(firsts, 0.99), 1),
            "first_token_ms_max": round(max(firsts, default=0), 1),
            "ms_a_token": round(statistics.fmean(gaps), 1) if gaps else 0.0,
            "job_steps_a_minute": round(self.steps * 60 / max(self.seconds, 1.0), 1),
            "held_up_ms_a_s": round(self.held_up_s * 1000 / max(self.seconds, 1.0), 1),
            "others_cores": round(self.others_s / max(self.seconds, 1.0), 2),
        }

    def raw(self) -> dict[str, list[float]]:
        """All times to the first token, ms, ascending."""
        return {"first_tokens_ms": sorted(round(timing.ttft_ms, 1) for timing in self.timings if timing.first)}


Round = dict[str, Window]


class Job:
    """A training that is stopped and let go on at once, by signals: its libraries are loaded, its step goes on where it
    stood. What others than the gateway, its engine and its trainer work meanwhile is counted, too."""

    def __init__(self, client: openai.AsyncOpenAI, id_: str, gateway_pid: int) -> None:
        self._client = client
        self._id = id_
        self._gateway = psutil.Process(gateway_pid)

    @classmethod
    async def make(cls, running: Running, data: Path, rows: int) -> Job:
        """A job on so many rows that it outlasts the measurement; it trains when this returns."""
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, timeout=30)
        examples = jsonl(read(data, seed=0)[:rows])
        file = await client.files.create(file=("banking.jsonl", examples), purpose="fine-tune")
        made = await client.fine_tuning.jobs.create(
            model=BASE.name,
            training_file=file.id,
            suffix="beside",
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 20}}},
        )
        job = cls(client, made.id, running.pid)
        async with asyncio.timeout(READY_S):
            while True:
                if await job.step() > 2:
                    return job
                await asyncio.sleep(0.5)

    async def step(self) -> int:
        """The last step that an event tells of."""
        page = await self._client.fine_tuning.jobs.list_events(self._id, limit=20)
        return max((int(dict(event.data or {}).get("step", 0)) for event in page.data), default=0)

    def signal(self, number: signal.Signals) -> None:
        """To the worker."""
        for process in self._gateway.children(recursive=True):
            if "trainer.finetune.worker" in process.cmdline():
                process.send_signal(number)

    def others_s(self) -> float:
        """Seconds that the machine's cores have worked for others."""
        times = psutil.cpu_times()
        ours = [self._gateway, *self._gateway.children(recursive=True)]
        own = sum(sum(process.cpu_times()[:2]) for process in ours)
        return float(times.user + times.nice + times.system + times.irq + times.softirq - own)

    def held_up_s(self) -> float:
        """Seconds that the threads of gateway and engine have waited for a core so far (schedstat, proc(5))."""
        trainers = [child for child in self._gateway.children() if "trainer" in child.cmdline()]
        making = {process.pid for trainer in trainers for process in [trainer, *trainer.children(recursive=True)]}
        waited = 0
        for process in [self._gateway, *self._gateway.children(recursive=True)]:
            if process.pid not in making:
                for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                    with suppress(OSError):  # it has just ended
                        waited += int(thread.read_text().split()[1])
        return waited / 1e9

    async def end(self) -> None:
        """Cancel it."""
        self.signal(signal.SIGCONT)
        await self._client.fine_tuning.jobs.cancel(self._id)
        await self._client.close()


async def callers(
    client: aiohttp.ClientSession, running: Running, models: list[str], *, rate: float, seconds: float, seed: int
) -> list[Timing]:
    """Requests at random times for so long; the seed decides when and how long, not the words."""
    draw, words = random.Random(seed), random.Random(time.time_ns())
    timings: list[Timing] = []
    ended = time.perf_counter() + seconds

    def one() -> Awaitable[None]:
        timing = Timing(models[len(timings) % len(models)], time.perf_counter())
        timings.append(timing)
        text, tokens = prompt(draw.randint(*WORDS), words), draw.randint(*TOKENS)
        return stream(client, running.url, timing, text, tokens)

    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(draw.expovariate(rate))
            if time.perf_counter() >= ended:
                return timings
            group.create_task(asyncio.wait_for(one(), 120))


async def measure(options: argparse.Namespace, running: Running) -> list[Round]:
    """Rounds until enough were quiet, or the time is up; the job runs in one of each round's two windows."""
    models = [BASE.name, SAMPLE.name]
    rounds: list[Round] = []
    ends = time.perf_counter() + options.most
    async with session() as client:
        await callers(client, running, models, rate=2, seconds=8, seed=0)
        job = await Job.make(running, options.data, options.rows)
        while not rounds or (time.perf_counter() < ends and sum(map(is_quiet, rounds)) < options.rounds):
            found: Round = {}
            for mode in MODES if len(rounds) % 2 else reversed(MODES):
                job.signal(signal.SIGCONT if mode == MODES[1] else signal.SIGSTOP)
                await asyncio.sleep(SETTLE_S)
                began, step, others = time.perf_counter(), await job.step(), job.others_s()
                held_up = job.held_up_s()
                timings = await callers(
                    client, running, models, rate=options.rate, seconds=options.seconds, seed=len(rounds)
                )
                seconds = time.perf_counter() - began
                held_up = job.held_up_s() - held_up
                found[mode] = Window(timings, await job.step() - step, seconds, job.others_s() - others, held_up)
            rounds.append(found)
            shown = {mode: window.row() for mode, window in found.items()}
            print(
                f"  round {len(rounds)}{'' if is_quiet(found) else ' (not quiet)'}: {shown}",
                file=sys.stderr,
                flush=True,
            )
        await job.end()
    return rounds


def is_quiet(found: Round) -> bool:
    """Whether the rest of the machine did little in both windows."""
    return all(window.others_s <= QUIET_CORES * window.seconds for window in found.values())


def together(rounds: list[Round]) -> tuple[Round, str]:
    """The rounds that count, added up, and in words which they are."""
    quiet = [found for found in rounds if is_quiet(found)]
    chosen = quiet if len(quiet) >= FEWEST_ROUNDS else rounds
    sums = {mode: Window() for mode in MODES}
    for found in chosen:
        for mode, window in found.items():
            total = sums[mode]
            total.timings += window.timings
            total.steps, total.seconds = total.steps + window.steps, total.seconds + window.seconds
            total.others_s += window.others_s
            total.held_up_s += window.held_up_s
    return sums, f"{len(chosen)} of {len(rounds)} rounds count, {len(quiet)} were quiet."


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows in Markdown, and how much longer the 99th percentile is."""
    columns = {
        "requests": "requests",
        "first_token_ms_p50": "TTFT p50 ms",
        "first_token_ms_p90": "p90 ms",
        "first_token_ms_p99": "p99 ms",
        "first_token_ms_max": "max ms",
        "ms_a_token": "ms a token",
        "job_steps_a_minute": "the job's steps/min",
        "held_up_ms_a_s": "held up, ms/s",
        "others_cores": "others, cores",
    }
    lines = ["| callers | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {mode} | " + " | ".join(f"{row[name]:g}" for name in columns) + " |" for mode, row in rows.items()]
    alone, beside = (rows[mode]["first_token_ms_p99"] for mode in MODES)
    return "\n".join([*lines, "", f"p99 beside a job is {beside / alone:.2f} times what it is alone."])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=16, help="quiet ones (default 16)")
    parser.add_argument("--seconds", type=float, default=14, help="of a window")
    parser.add_argument("--most", type=float, default=480, help="seconds, all rounds together; one is always measured")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--home", type=Path, default=REPO / "var" / "loadtests" / "serving")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with gateway(options.home, BASE, {}, "--trainer") as running:
        push(running, [SAMPLE])
        rounds = asyncio.run(measure(options, running))
    windows, which = together(rounds)
    rows = {mode: window.row() for mode, window in windows.items()}
    print(f"{table(rows)}\n{which}")
    if options.out:
        write_json(options.out, {mode: rows[mode] | window.raw() for mode, window in windows.items()})


if __name__ == "__main__":
    main()
