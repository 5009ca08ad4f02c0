"""What a training needs of memory by the estimate, and how far the estimate is from measured peaks.

    .venv/bin/python -m loadtests.training.memory                # what fits into 12, 24, 48 and 80 GB: no training
    .venv/bin/python -m loadtests.training.memory --measure      # peaks of small trainings on this CPU; minutes

The table is the estimate's (`trainer.tune.memory.estimate`) for known shapes; nobody has run these on GPUs of these
sizes. Of a GPU shared with the engine, take its share off first. `--measure` trains random models for two steps, each
in a process of its own, and compares the peak of its resident memory with the estimate.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from trainer.tune.memory import EAGER_MAX_TOKENS, ModelShape, estimate, read_shape
from trainer.tune.recipe import GPU_MICRO_BATCH_TOKENS, Recipe

GB: Final = 10**9
SIZES_GB: Final = (12, 24, 48, 80)
LENGTHS: Final = (512, 2048, 8192)
SHAPES: Final = {
    # layers, hidden, heads, intermediate, vocabulary, parameters in billions, tied embeddings: their published configs
    "Qwen2.5 0.5B": (24, 896, 14, 4864, 151936, 0.494, True),
    "Llama 3.2 1B": (16, 2048, 32, 8192, 128256, 1.236, True),
    "Llama 3.2 3B": (28, 3072, 24, 8192, 128256, 3.213, True),
    "Llama 3.1 8B": (32, 4096, 32, 14336, 128256, 8.030, False),
    "Qwen2.5 14B": (48, 5120, 40, 13824, 152064, 14.770, False),
    "Qwen2.5 32B": (64, 5120, 40, 27648, 152064, 32.764, False),
    "Llama 3.1 70B": (80, 8192, 64, 28672, 128256, 70.554, False),
}
MEASURED: Final = (
    *product((2, 6), (256, 768), (64, 384), (False, True), ("bfloat16",)),
    *product((2, 6), (768,), (384,), (False,), ("float32",)),
)
"""Layers, hidden size, tokens of an example, gradient checkpointing, dtype."""
VOCABULARY: Final = 8192
BATCH: Final = 8


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        measure_one(*json.loads(options.one))
    elif options.measure:
        for row in measured_rows():  # each takes a while
            print(row, flush=True)
    else:
        print("\n".join(table(options.rank)))


def table(rank: int) -> Iterator[str]:
    """The Markdown table of what fits, by base and length."""
    yield "| base, nf4 | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |"
    yield "|---|" + "---|" * len(LENGTHS)
    for name, numbers in SHAPES.items():
        cells = (smallest(shape_of(numbers), rank, length) for length in LENGTHS)
        yield f"| {name} | " + " | ".join(cells) + " |"


def shape_of(numbers: Sequence[float]) -> ModelShape:
    """The shape of one of SHAPES."""
    layers, hidden, heads, intermediate, vocabulary, billions, tied = numbers
    return ModelShape(
        layers=int(layers),
        hidden=int(hidden),
        heads=int(heads),
        intermediate=int(intermediate),
        vocabulary=int(vocabulary),
        weights=int(billions * 10**9),
        embeddings=int(hidden * vocabulary * (1 if tied else 2)),
        streams=True,
    )


def smallest(shape: ModelShape, rank: int, length: int) -> str:
    """The smallest of SIZES_GB into which a training with this longest example fits, and how, as the trainer does it:
    with smaller micro-batches first, then with gradient checkpointing."""
    for size in SIZES_GB:
        for checkpointing, tokens in (
            (False, GPU_MICRO_BATCH_TOKENS),
            (False, 1),
            (True, GPU_MICRO_BATCH_TOKENS),
            (True, 1),
        ):
            recipe = Recipe(
                rank=rank,
                batch_size=8,
                max_length=length,
                quantization="nf4",
                gradient_checkpointing=checkpointing,
                micro_batch_tokens=tokens,
            )
            needed = estimate(shape, recipe, longest=length, fused=True).total
            if needed <= size * GB:
                return f"{size} GB{', checkpointing' if checkpointing else ''} ({needed / GB:.1f})"
    return f"not in {SIZES_GB[-1]} GB"


def measured_rows() -> Iterator[str]:
    """The Markdown table of measured peaks beside the estimate."""
    yield "| layers | hidden | tokens | checkpointing | dtype | estimate MB | peak MB | estimate / peak |"
    yield "|---:|---:|---:|---|---|---:|---:|---:|"
    for layers, hidden, length, checkpointing, dtype in MEASURED:
        arguments = json.dumps([layers, hidden, length, checkpointing, dtype])
        command = [sys.executable, "-m", "loadtests.training.memory", "--one", arguments]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        estimated, peak = json.loads(output.splitlines()[-1])
        numbers = f"{estimated / 1e6:,.0f} | {peak / 1e6:,.0f} | {estimated / peak:.2f}"
        yield f"| {layers} | {hidden} | {length} | {'yes' if checkpointing else 'no'} | {dtype} | {numbers} |"


def measure_one(layers: int, hidden: int, length: int, checkpointing: bool, dtype: str) -> None:
    """Train two steps and print the estimate and the peak, bytes."""
    import torch

    from trainer.data.render import TokenSequence
    from trainer.tune.model import attach_lora, load_base
    from trainer.tune.train import train

    recipe = Recipe(
        batch_size=BATCH,
        epochs=2,
        micro_batch_tokens=512,
        max_length=max(8, length),
        gradient_checkpointing=checkpointing,
    )
    flags = (False, *(True,) * (length - 1))
    rows = [
        TokenSequence(tuple((at * 31 + row) % VOCABULARY for at in range(length)), flags, row) for row in range(BATCH)
    ]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_base(base, layers, hidden)
        torch_dtype: Any = getattr(torch, dtype)
        shape = read_shape(base)
        needed = estimate(
            shape,
            recipe,
            longest=length,
            fused=length > EAGER_MAX_TOKENS,
            number_bytes=torch_dtype.itemsize,
        )
        model = load_base(base, dtype=torch_dtype, device=torch.device("cpu"), longest=length)
        train(attach_lora(model, recipe), rows, recipe, on_progress=lambda _: None)
    print(json.dumps([needed.total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def write_base(directory: Path, layers: int, hidden: int) -> None:
    """A random Llama, bfloat16, written in a process of its own so that its memory does not count."""
    code = (
        "import sys, torch; from transformers import LlamaConfig, LlamaForCausalLM; "
        f"config = LlamaConfig(vocab_size={VOCABULARY}, hidden_size={hidden}, intermediate_size={3 * hidden}, "
        f"num_hidden_layers={layers}, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024, "
        "tie_word_embeddings=True); "
        "LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
