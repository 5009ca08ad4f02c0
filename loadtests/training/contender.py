"""One contender of `speed.py` in a process of its own, so that its memory is its own: prints a line of JSON.

python -m loadtests.training.contender NAME --base DIR --data train.csv --rows 160 --held-out 64
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from loadtests.training.banking import jsonl, read
from trainer.data.prepare import DataRules, Prepared, Source, inspect
from trainer.data.render import Renderer, stop_tokens
from trainer.tune.model import attach_lora, compute_dtype, load_base, load_generation_config, load_tokenizer
from trainer.tune.progress import TrainingProgress
from trainer.tune.recipe import Recipe
from trainer.tune.train import evaluate, train

RATE, BATCH, RANK, LENGTH = 5e-4, 16, 8, 512
DEVICE = torch.device("cpu")


def main() -> None:
    """Train once and print tokens/s, held-out loss and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["hatrack", "trl-defaults", "trl-tuned", "trl-tuned-bf16"])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    began, others = time.perf_counter(), others_s()
    rows = read(options.data, seed=1)[: options.rows + options.held_out]
    taught, unseen = rows[: options.rows], rows[options.rows :]
    tokenizer = load_tokenizer(options.base)
    renderer = Renderer(
        tokenizer, stop_tokens=stop_tokens(tokenizer, load_generation_config(options.base)), max_length=LENGTH
    )
    prepared = inspect(Source("t", jsonl(taught)), Source("h", jsonl(unseen)), renderer, DataRules())
    recipe = Recipe(rank=RANK, alpha=2 * RANK, learning_rate=RATE, batch_size=BATCH, epochs=options.epochs)
    run = ours if options.name == "hatrack" else theirs
    model, seconds, loss = run(options, tokenizer, prepared, recipe, taught)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.float32):
        held_out = evaluate(model, prepared.held_out_sequences, recipe)
    tokens = sum(len(sequence.tokens) for sequence in prepared.sequences) * options.epochs
    found = {
        "name": options.name,
        "tokens_per_s": round(tokens / seconds, 1),
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "train_loss": round(loss, 4),
        "held_out_loss": round(held_out.loss, 4),
        "peak_mib": peak,
        "others_cores": round((others_s() - others) / (time.perf_counter() - began), 2),
    }
    print(json.dumps(found))


def others_s() -> float:
    """Seconds of a core that the machine has worked for others than this process, since it started."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return float(busy - time.process_time())


def ours(options: Any, _tokenizer: Any, prepared: Prepared, recipe: Recipe, _rows: Any) -> tuple[Any, float, float]:
    """Hatrack's own loop."""
    longest = max(len(sequence.tokens) for sequence in prepared.sequences)
    base = load_base(options.base, dtype=compute_dtype(DEVICE), device=DEVICE, longest=longest)
    torch.manual_seed(0)
    model = attach_lora(base, recipe)
    seen: list[TrainingProgress] = []
    started = time.perf_counter()
    done = train(model, prepared.sequences, recipe, on_progress=seen.append)
    return model, time.perf_counter() - started, done.final_loss


def theirs(options: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, rows: Any) -> tuple[Any, float, float]:
    """TRL's SFTTrainer: at its defaults, tuned by hand, and that with bfloat16 weights."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    tuned = options.name != "trl-defaults"
    dtype = torch.bfloat16 if options.name == "trl-tuned-bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype)
    examples = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        ]
    )
    by_hand: dict[str, Any] = {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": recipe.batch_size,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup_ratio,  # below 1 it is a share of all steps
        "pad_to_multiple_of": 8,
    }
    # the same effective batch for all: at its defaults TRL's own batch of 8, twice
    defaults: dict[str, Any] = {"gradient_accumulation_steps": recipe.batch_size // 8}
    with tempfile.TemporaryDirectory() as directory:
        config = SFTConfig(
            output_dir=directory,
            num_train_epochs=recipe.epochs,
            report_to=[],
            save_strategy="no",
            logging_strategy="epoch",
            bf16=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=0,
            **(by_hand if tuned else defaults),
        )
        lora = LoraConfig(
            r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = SFTTrainer(
            model=base, args=config, train_dataset=examples, processing_class=tokenizer, peft_config=lora
        )
        started = time.perf_counter()
        result = trainer.train()
        return trainer.model, time.perf_counter() - started, float(result.training_loss)


if __name__ == "__main__":
    main()
