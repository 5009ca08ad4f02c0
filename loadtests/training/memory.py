"""What a training needs of memory by the estimate, and how far the estimate is from measured peaks.

    .venv/bin/python -m loadtests.training.memory                # what fits into 12, 24, 48 and 80 GB: no training
    .venv/bin/python -m loadtests.training.memory --measure      # peaks of small trainings on this CPU; some 15 minutes
    .venv/bin/python -m loadtests.training.memory --measure --device cuda:0    # of larger ones on a GPU: not run yet

The table is the estimate's (`trainer.tune.memory.estimate`) for known shapes; nobody has run these on GPUs of these
sizes. Of a GPU shared with the engine, take its share off first. `--measure` trains random models over a grid of sizes
(layers, width, examples of a step, their length, tokens of a micro-batch), and of architectures with the MLPs' ratios
of published models, for two steps, each in a process of its own, and compares its peak (the resident memory; on a GPU,
what torch has allocated) with the estimate. `loadtests.training.activations` compares the tensors alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

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
WORKLOADS: Final = (
    # examples of a step, tokens of each, tokens of a micro-batch at most
    (8, 64, 512),
    (8, 384, 512),  # a step in eight parts: gradients are accumulated
    (8, 384, 4096),  # the same step at once
    (2, 1024, 512),  # above EAGER_MAX_TOKENS: fused attention
)
ARCHITECTURES: Final = (
    # kind, intermediate / hidden: of SmolLM2 135M, Llama 3.1 8B, Qwen2.5 32B, Qwen3 0.6B, Gemma 3 1B
    ("llama", 2.67),
    ("llama", 3.5),
    ("qwen2", 5.4),
    ("qwen3", 3.0),
    ("gemma3_text", 6.0),
)
ARCHITECTURES_WORKLOAD: Final = (4, 1024, 4096)
"""Fused attention, and so many tokens that activations are most of the peak."""
GPU_WORKLOADS: Final = ((16, 256, 4096), (16, 1024, 4096), (16, 1024, 16384), (4, 4096, 4096))
VOCABULARY: Final = 8192


@dataclass(frozen=True, slots=True)
class Case:
    """One training of the grid."""

    layers: int
    hidden: int
    batch: int
    length: int
    micro_batch_tokens: int
    checkpointing: bool = False
    dtype: str = "bfloat16"
    quantization: Literal["none", "nf4"] = "none"
    kind: str = "llama"
    ratio: float = 3.0

    @property
    def recipe(self) -> Recipe:
        """Two steps of `batch` examples."""
        return Recipe(
            batch_size=self.batch,
            epochs=2,
            micro_batch_tokens=self.micro_batch_tokens,
            max_length=max(8, self.length),
            gradient_checkpointing=self.checkpointing,
            quantization=self.quantization,
        )


def cases(device: str) -> Iterator[Case]:
    """The grid: sizes of the model by sizes of the work, and what changes the arithmetic on the largest of them."""
    on_gpu = device != "cpu"
    models = tuple(product((8, 32), (1024, 4096))) if on_gpu else tuple(product((2, 8), (256, 768)))
    for (layers, hidden), workload in product(models, GPU_WORKLOADS if on_gpu else WORKLOADS):
        yield Case(layers, hidden, *workload)
    layers, hidden = models[-1]
    for workload in (GPU_WORKLOADS if on_gpu else WORKLOADS)[1:]:
        yield Case(layers, hidden, *workload, checkpointing=True)
    if on_gpu:
        yield Case(layers, hidden, *GPU_WORKLOADS[1], quantization="nf4")
        yield Case(layers, hidden, *GPU_WORKLOADS[-1], checkpointing=True, quantization="nf4")
    else:
        yield Case(layers, hidden, *WORKLOADS[1], dtype="float32")
    for kind, ratio in ARCHITECTURES:
        workload = GPU_WORKLOADS[1] if on_gpu else ARCHITECTURES_WORKLOAD
        yield Case(layers, hidden, *workload, kind=kind, ratio=ratio)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--device", default="cpu", help="of --measure: cpu, or a GPU such as cuda:0")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        measure_one(Case(**json.loads(options.one)), options.base, options.device)
    elif options.measure:
        for row in measured_rows(options.device):
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


def measured_rows(device: str) -> Iterator[str]:
    """The Markdown table of measured peaks beside the estimate; each row takes a while."""
    yield (
        "| architecture | MLP / hidden | layers | hidden | step | at a time | checkpointing | numbers | estimate MB "
        "| peak MB | estimate / peak |"
    )
    yield "|---|---:|---:|---:|---|---:|---|---|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(device):
            base = Path(folder) / f"{case.kind}-{case.ratio}-{case.layers}x{case.hidden}"
            if not base.exists():
                write_base(base, case)
            arguments = json.dumps(asdict(case))
            command = [sys.executable, "-m", "loadtests.training.memory", "--one", arguments, "--base", str(base)]
            run = subprocess.run([*command, "--device", device], capture_output=True, text=True)
            if run.returncode:
                yield f"| {case} | failed: {run.stderr.strip().splitlines()[-1][:200]} |"
                continue
            estimated, peak = json.loads(run.stdout.splitlines()[-1])
            numbers = case.dtype if case.quantization == "none" else case.quantization
            yield (
                f"| {case.kind} | {case.ratio} | {case.layers} | {case.hidden} "
                f"| {case.batch} × {case.length:,} | {case.micro_batch_tokens:,} "
                f"| {'yes' if case.checkpointing else 'no'} | {numbers} "
                f"| {estimated / 1e6:,.0f} | {peak / 1e6:,.0f} | {estimated / peak:.2f} |"
            )


def measure_one(case: Case, base: Path, device: str) -> None:
    """Train two steps and print the estimate and the peak, bytes: on a CPU the process's resident memory, on a GPU what
    torch has allocated, beside the estimate without the process's own memory."""
    import torch

    from trainer.data.render import TokenSequence
    from trainer.tune.model import attach_lora, load_base
    from trainer.tune.train import train

    flags = (False, *(True,) * (case.length - 1))
    rows = [
        TokenSequence(tuple((at * 31 + row) % VOCABULARY for at in range(case.length)), flags, row)
        for row in range(case.batch)
    ]
    dtype: Any = getattr(torch, case.dtype)
    on_gpu = device != "cpu"
    needed = estimate(
        read_shape(base),
        case.recipe,
        longest=case.length,
        fused=on_gpu or case.length > EAGER_MAX_TOKENS,
        number_bytes=dtype.itemsize,
    )
    model = load_base(
        base, dtype=dtype, device=torch.device(device), longest=case.length, quantization=case.quantization
    )
    train(attach_lora(model, case.recipe), rows, case.recipe, on_progress=lambda _: None)
    if on_gpu:
        print(json.dumps([needed.total - needed.runtime, torch.cuda.max_memory_allocated(device)]))
    else:
        print(json.dumps([needed.total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def write_base(directory: Path, case: Case) -> None:
    """A random model, bfloat16, written in a process of its own so that its memory does not count."""
    configuration = {
        "vocab_size": VOCABULARY,
        "hidden_size": case.hidden,
        "intermediate_size": round(case.hidden * case.ratio / 8) * 8,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden // 64,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    code = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModelForCausalLM; "
        "config = AutoConfig.for_model(sys.argv[2], **json.loads(sys.argv[3])); "
        "AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(sys.argv[1])"
    )
    arguments = (str(directory), case.kind, json.dumps(configuration))
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
