"""`python -m trainer.data.check FILE --base DIR …`: prints the quality report of a data file as JSON on stdout.

It is a process of its own: see `trainer.data.child_process`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from adapters.protocol.requests import Overflow
from trainer.data.child_process import refuse
from trainer.data.formats import read_dataset
from trainer.data.prepare import MIN_EXAMPLES, DataRules, Source, inspect
from trainer.errors import DataError, TrainerError
from trainer.tune import auto
from trainer.tune.hyperparameters import HyperparameterRequest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.data.check", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", default="training.jsonl", help="name of the file in the report")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint directory of the base model")
    parser.add_argument("--context", type=int, help="the engine's context, tokens")
    parser.add_argument("--max-length", type=int, help="longest example, tokens; unset: as in a job with `auto`")
    parser.add_argument("--strict", action="store_true", help="turn warnings into refusals")
    parser.add_argument("--overflow", choices=get_args(Overflow), default="refuse", help="of longer examples")
    parser.add_argument("--min-held-out", type=int, default=0, help="held-out examples that a verdict needs")
    parser.add_argument("--memory-gib", type=float, help="limit of the address space, GiB")
    options = parser.parse_args(arguments)
    if options.memory_gib is not None:
        limit = int(options.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        sys.stdout.write(_report(options) + "\n")
    except MemoryError:
        return refuse("out_of_memory", "checking the file exceeds the memory limit of a data check")
    except DataError as error:
        return refuse(error.code, error.message)
    except TrainerError as error:
        return refuse(error.code, error.message, param=getattr(error, "param", None))
    return 0


def _report(options: argparse.Namespace) -> str:
    source = Source(options.name, options.file.read_bytes())
    read_dataset(
        source.name, source.content, min_examples=MIN_EXAMPLES
    )  # reports invalid files before the slow import of torch
    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune.model import load_generation_config, load_tokenizer

    config: dict[str, Any] = json.loads((options.base / "config.json").read_text())
    positions = config.get("text_config", config)["max_position_embeddings"]
    wish = (
        HyperparameterRequest() if options.max_length is None else HyperparameterRequest(max_length=options.max_length)
    )
    tokenizer = load_tokenizer(options.base)
    renderer = Renderer(
        tokenizer,
        stop_tokens=stop_tokens(tokenizer, load_generation_config(options.base)),
        max_length=auto.max_length(wish, context=options.context, positions=positions),
    )
    rules = DataRules(overflow=options.overflow, strict=options.strict, min_held_out=options.min_held_out)
    return inspect(source, None, renderer, rules).report.model_dump_json()


if __name__ == "__main__":
    sys.exit(main())
