"""Somebody else's load generators before plain vLLM and Hatrack: `vllm bench serve`, and guidellm.

    python3 -m venv ~/.cache/guidellm && ~/.cache/guidellm/bin/pip install guidellm==0.8.1
    .venv/bin/python -m loadtests.generators --guidellm ~/.cache/guidellm/bin/guidellm

Both servers have the same base, adapters and flags (`loadtests.engine`) and run one after the other. Each generator
sends chat requests of 32 tokens and of as many in the answer over 16 connections, to the base and to adapters: vLLM's
to eight at random (``--lora-modules``), guidellm, which asks one model, to one. Prints their own figures, and draws
them (``generators.svg`` beside ``generators.json``). Without ``--guidellm`` only vLLM's runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from loadtests import chart
from loadtests.engine import BASE, REPO, SIDES, SLOTS, STREAMS, Server, hatrack, plain_vllm, random_adapters
from loadtests.support import KEY, write_json

TOKENS: Final = 32
"""Of a prompt and of an answer."""
LIMIT_S: Final = 1800.0
SPEED, FIRST = "tokens/s", "p99 to the first token, s"
_BENCH: Final = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""As `vllm bench serve`, which does not start where vLLM's package has the name of its CPU build."""

Found = dict[str, float]
"""By the name of what was measured."""


def vllm_bench(server: Server, base: Path, out: Path, requests: int) -> Found:
    """What vLLM's generator reports, for the base and for eight adapters.

    Raises:
        RuntimeError: A request failed.
    """
    found: Found = {}
    for case, adapters in (("base", []), ("eight adapters", list(server.adapters[:SLOTS]))):
        command = [
            *(sys.executable, "-c", _BENCH, "--backend", "openai-chat", "--base-url", server.url),
            *("--endpoint", "/v1/chat/completions", "--model", str(base), "--served-model-name", server.base),
            *(["--lora-modules", *adapters] if adapters else []),
            *("--dataset-name", "random", "--random-input-len", str(TOKENS), "--random-output-len", str(TOKENS)),
            *("--num-prompts", str(requests), "--max-concurrency", str(STREAMS), "--num-warmups", str(STREAMS)),
            *("--ignore-eos", "--seed", "7", "--percentile-metrics", "ttft", "--disable-tqdm"),
            *("--save-result", "--result-dir", str(out), "--result-filename", "vllm.json"),
        ]
        _run(command, out / "vllm.log")
        result = json.loads((out / "vllm.json").read_text())
        if result["failed"] or result["completed"] != requests:
            raise RuntimeError(f"vllm bench serve: {result['failed']} of {requests} requests failed")
        name = f"vllm bench serve, {case}"
        found |= {f"{name}: {SPEED}": result["output_throughput"], f"{name}: {FIRST}": result["p99_ttft_ms"] / 1000}
    return found


def guidellm(program: Path, server: Server, base: Path, out: Path, requests: int) -> Found:
    """What guidellm reports, for the base and for one adapter.

    Raises:
        RuntimeError: A request failed.
    """
    found: Found = {}
    for case, model in (("base", server.base), ("one adapter", server.adapters[0])):
        command = [
            *(str(program), "run", "--backend", f"kind=openai_http,target={server.url},model={model},api_key={KEY}"),
            *("--profile", f"kind=concurrent,streams={STREAMS}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={TOKENS},output_tokens={TOKENS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={base}"),
            *("--constraint", f"kind=max_requests,count={requests}"),
            *("--output", f"kind=json,path={out / 'guidellm.json'}", "--disable-console"),
        ]
        _run(command, out / "guidellm.log")
        result: dict[str, Any] = json.loads((out / "guidellm.json").read_text())["benchmarks"][0]
        totals, metrics = result["metrics"]["request_totals"], result["metrics"]
        if totals["errored"] or totals["successful"] < requests:
            raise RuntimeError(f"guidellm: of {requests} requests {totals}")
        name = f"guidellm, {case}"
        found |= {
            f"{name}: {SPEED}": metrics["output_tokens_per_second"]["successful"]["mean"],
            f"{name}: {FIRST}": metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p99"] / 1000,
        }
    return found


def _run(command: Sequence[str], log: Path) -> None:
    """Run a generator. Raises RuntimeError with the end of its log."""
    offline = {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": KEY}
    with log.open("wb") as output:
        done = subprocess.run(
            command, env=os.environ | offline, stdout=output, stderr=output, check=False, timeout=LIMIT_S
        )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{log.read_text(errors='replace')[-2000:]}")


def table(found: dict[str, Found]) -> str:
    """Markdown: a line for each figure, with how many times as good ours is."""
    theirs, ours = (found[side] for side in SIDES)
    lines = [f"| | {SIDES[0]} | {SIDES[1]} | |", "|---|---:|---:|---:|"]
    for name, before in theirs.items():
        ratio = before / ours[name] if name.endswith(FIRST) else ours[name] / before
        lines.append(f"| {name} | {before:,.1f} | {ours[name]:,.1f} | {ratio:.1f}× |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", type=Path, help="its program; default: it does not run")
    parser.add_argument("--requests", type=int, default=128, help="of each case")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--out", type=Path, default=REPO / "var" / "loadtests" / "generators")
    chosen = parser.parse_args()
    base, out = chosen.base.resolve(), chosen.out.resolve()
    adapters = random_adapters(base, out / "adapters", SLOTS)
    found: dict[str, Found] = {}
    for side, start in zip(SIDES, (plain_vllm, hatrack), strict=True):
        with start(out / side.replace(" ", "-").lower(), base, adapters) as server:
            found[side] = vllm_bench(server, base, out, chosen.requests)
            if chosen.guidellm is not None:
                found[side] |= guidellm(chosen.guidellm, server, base, out, chosen.requests)
        write_json(out / "generators.json", {"load_average": os.getloadavg(), "found": found})
    rows = {name: [found[side][name] for side in SIDES] for name in found[SIDES[0]]}
    note = f"chat, {TOKENS} tokens in and out, {STREAMS} connections; {os.cpu_count()} cores"
    panels = chart.panels(rows, SIDES, lambda name: name.endswith(FIRST))
    (out / "generators.svg").write_text(chart.draw("Somebody else's load generators", note, panels))
    print(table(found))


if __name__ == "__main__":
    main()
