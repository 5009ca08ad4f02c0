"""The README.md of an exported model: what it was made of, and what is known about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.merge import Merge, licence_files

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterVersion

MAX_README_BYTES: Final = 1024 * 1024
_LICENCE: Final = re.compile(r"^license:[ \t]*([A-Za-z0-9._+-]{1,64})[ \t]*$", re.MULTILINE)
_FRONT_MATTER: Final = re.compile(r"\A---\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def base_licence(base_dir: Path) -> str | None:
    """The licence that the base's own model card states in its front matter; None if there is none."""
    try:
        with (base_dir / "README.md").open("rb") as file:
            text = file.read(MAX_README_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return None
    front_matter = _FRONT_MATTER.match(text)
    licence = _LICENCE.search(front_matter[1]) if front_matter is not None else None
    return licence[1].lower() if licence is not None else None


def model_card(version: AdapterVersion, base_dir: Path, merge: Merge) -> str:
    """The text of the model card, in Markdown with the front matter that model hubs read."""
    name = f"{version['adapter']}@{version['version']}"
    lineage: dict[str, Any] = version["metadata"].get("lineage") or {}
    base_name = str(lineage.get("base_name") or base_dir.name)
    licence = base_licence(base_dir)
    lines = [
        "---",
        f"license: {licence or 'other'}",
        *([] if licence else ["license_name: see-base-model"]),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [hatrack, lora, merged]",
        "---",
        "",
        f"# {name}, merged",
        "",
        f"The base model {_code(base_name)} with the LoRA adapter {_code(name)} merged into its weights by Hatrack.",
        "It needs neither PEFT nor Hatrack: transformers and vLLM load this directory as it is.",
        "",
        "## What it was made of",
        "",
        *_table(_origin(version, lineage, base_name, merge)),
        "",
        *_system_prompt(version),
        "## What is known about the adapter",
        "",
        *_evidence(version),
        "",
        "## How it was merged",
        "",
        f"W + scaling·B·A in {len(merge.modules)} layers, computed in float32 and rounded once to the dtype of the",
        "base's weights; all other tensors are the base's to the byte. The engine adds the adapter's part unrounded,",
        "so answers of the two can differ by that rounding. Proof and verdict are about the adapter on its base; this",
        "copy was not judged again.",
        "",
        *_table([(_code(file.name), f"{file.bytes:,} bytes, SHA-256 {_code(file.sha256)}") for file in merge.files]),
        "",
        "## Licence",
        "",
        _licence(licence, licence_files(base_dir)),
        "",
    ]
    return "\n".join(lines)


def _origin(version: AdapterVersion, lineage: Mapping[str, Any], base_name: str, merge: Merge) -> list[tuple[str, str]]:
    base = version["base"]
    facts = [
        ("adapter", f"rank {version['rank']}, alpha {version['alpha']:g}, {', '.join(version['target_modules'])}"),
        ("adapter's digest", _code(version["digest"])),
        ("largest update", f"{merge.update_ratio:.3g} of its layer's weight (Frobenius norms)"),
        ("base", f"{_code(base_name)}, weights {_code(base['weights'])}, config {_code(base['config'])}"),
    ]
    if not lineage:
        return [*facts, ("training", "not known: the adapter was pushed without a lineage")]
    datasets: Mapping[str, str] = lineage.get("datasets") or {}
    for file in lineage.get("data") or []:
        named = f" ({_code(datasets['training_file'])})" if "training_file" in datasets else ""
        facts.append(
            ("data", f"{_code(file['name'])}{named}, {file['examples']} examples, SHA-256 {_code(file['sha256'])}")
        )
    if held_out := lineage.get("held_out"):
        facts.append(("held out", f"{_code(held_out['name'])}, SHA-256 {_code(held_out['sha256'])}"))
    facts += [("parent", _code(lineage["parent"]))] if lineage.get("parent") else []
    facts += [("job", _code(lineage["job"]))] if lineage.get("job") else []
    recipe: Mapping[str, Any] = lineage.get("recipe") or {}
    shown = ("epochs", "batch_size", "learning_rate", "quantization", "seed")
    facts.append(("recipe", ", ".join(f"{field} {recipe[field]}" for field in shown if field in recipe) or "-"))
    return facts


def _system_prompt(version: AdapterVersion) -> list[str]:
    """The system prompt is a setting of the version, and in no weight: whoever serves the copy must send it."""
    prompt = version["settings"].get("system_prompt")
    if not prompt:
        return []
    fence = "`" * (max((len(run) for run in re.findall("`+", prompt)), default=2) + 1)
    return [
        "It was trained with this system prompt, which is not in the weights; send it:",
        "",
        fence,
        prompt,
        fence,
        "",
    ]


def _evidence(version: AdapterVersion) -> list[str]:
    proof, verdict = version["proof"], version["verdict"]
    lines = []
    if proof is not None and "distance" in proof:  # a version without weights has another proof, and is not exported
        lines.append(
            f"- Proof: over {proof['tokens']} tokens of probe texts, the adapter moved the base's log-probabilities by "
            f"{proof['distance']:.3g} nats a token in the engine (its own noise: {proof['noise']:.3g})."
        )
        if perplexity := proof.get("perplexity"):
            lines.append(f"- Perplexity of plain text: {perplexity['ratio']:.3g} times the base's.")
    if verdict is None:
        lines.append("- Verdict: none; it was never evaluated.")
    else:
        word = verdict["verdict"].replace("_", " ")
        lines.append(f"- Verdict: **{word}** ({_plain(verdict['sentence'])})")
        lines.append(
            f"- Judged by {verdict['metric']} on {verdict['examples']} held-out examples, rule {verdict['rule']}."
        )
    if revalidation := version["revalidation"]:
        lines.append(f"- Revalidation: {revalidation['state']}.")
    if held_back := version["held_back"]:
        lines.append(f"- **Held back**: {_plain(held_back['message'])}")
    return lines


def _licence(licence: str | None, files: Sequence[str]) -> str:
    parts = [f"The base's model card states the licence {_code(licence)}." if licence else ""]
    if files:
        parts.append(f"The base's own terms are in {', '.join(map(_code, files))}, copied here.")
    if not licence and not files:
        parts.append("The base's files state no licence: look at where the base came from before you pass this on.")
    parts.append("The base's licence holds for this copy; the adapter's data may bring terms of its own.")
    return " ".join(part for part in parts if part)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _code(text: str | None) -> str:
    """A text as code in a line or a table's cell, whatever is in it."""
    return "`" + _plain(str(text)).replace("`", "'").replace("|", "¦") + "`"


def _plain(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())
