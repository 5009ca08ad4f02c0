"""The README.md of an exported model or a pulled adapter: what it was made of, and what is known about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.merge import Merge, licence_files

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterVersion

_LORA: Final = (
    "A LoRA adapter as PEFT saves it: PEFT and vLLM load `adapter_config.json` and `adapter_model.safetensors`.",
    "`hatrack push NAME DIR` makes it a version again, with `settings.json` and `metadata.json` if those are there.",
)
_NO_WEIGHTS: Final = (
    "A version without weights: the base answers, with the settings in `settings.json`. To make it a version again:",
    "`hatrack push NAME --settings settings.json`.",
)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
MAX_README_BYTES: Final = 1024 * 1024
_LICENCE: Final = re.compile(r"^license:[ \t]*([A-Za-z0-9._+-]{1,64})[ \t]*$", re.MULTILINE)
_FRONT_MATTER: Final = re.compile(r"\A---\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)

_BLANK_CARD: Final = re.compile(
    r"\A(?:---\n.*?\n---\s*\n)?\s*# Model Card for Model ID\n\s*"
    r"(?:<!-- Provide a quick summary of what the model is/does\. -->\s*)?## Model Details\n",
    re.DOTALL,
)
_TO_FILL_IN: Final = "[More Information Needed]"
_BLANKS: Final = 38
"""Of the form that nobody has touched."""


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
    base_name = _base_name(version) or base_dir.name
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
        *_table(_origin(version, base_name, merge)),
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


def adapter_card(version: AdapterVersion, base_name: str | None) -> str:
    """The text of the model card of an adapter's own files, or of a version without weights.

    Args:
        base_name: What adapter_config.json calls the base; None if it says nothing.
    """
    name = f"{version['adapter']}@{version['version']}"
    base_name = _base_name(version) or base_name or "the base model"
    has_weights = version["digest"] is not None
    is_hub_id = _HUB_ID.fullmatch(base_name) is not None
    lines = [
        "---",
        "license: other",
        "license_name: see-base-model",
        *([f"base_model: {base_name}"] if is_hub_id else []),
        *(["library_name: peft"] if has_weights else []),
        f"tags: [hatrack, {'lora' if has_weights else 'prompt'}]",
        "---",
        "",
        f"# {name}",
        "",
        *(_LORA if has_weights else _NO_WEIGHTS),
        "",
        "## What it was made of",
        "",
        *_table(_origin(version, base_name, None)),
        "",
        *_system_prompt(version),
        *_other_settings(version),
        "## What is known about it",
        "",
        *_evidence(version),
        "",
        "## Licence",
        "",
        "The base's licence holds for what is derived from it, and the training data may bring terms of their own:",
        "look at where they came from before you pass this on.",
        "",
    ]
    return "\n".join(lines)


def is_adapter_card(text: str, version: AdapterVersion) -> bool:
    """Whether a README begins as ``adapter_card`` of this version does, whatever was known of it at the time."""
    text = text.replace("\r\n", "\n")
    front_matter = _FRONT_MATTER.match(text)
    if front_matter is None or "tags: [hatrack, " not in front_matter[1]:
        return False
    return text[front_matter.end() :].lstrip("\n").startswith(f"# {version['adapter']}@{version['version']}\n")


def is_blank_card(text: str) -> bool:
    """Whether a README is the form that PEFT saves beside an adapter, and nobody has filled it in.

    The form is `modelcard_template.md` of huggingface_hub: its title stands for a name, and no summary follows it.
    """
    return _BLANK_CARD.match(text.replace("\r\n", "\n")) is not None and text.count(_TO_FILL_IN) >= _BLANKS


def _lineage(version: AdapterVersion) -> dict[str, Any]:
    """The version's lineage; empty where it has none, or one that is no object."""
    lineage = version["metadata"].get("lineage")
    return lineage if isinstance(lineage, dict) else {}


def _base_name(version: AdapterVersion) -> str | None:
    name = _lineage(version).get("base_name")
    return _plain(name) if isinstance(name, str) and name else None


def _origin(version: AdapterVersion, base_name: str, merge: Merge | None) -> list[tuple[str, str]]:
    base = version["base"]
    facts = []
    if version["digest"] is not None:
        modules = ", ".join(version["target_modules"])
        facts.append(("adapter", f"rank {version['rank']}, alpha {version['alpha']:g}, {modules}"))
        facts.append(("adapter's digest", _code(version["digest"])))
    if merge is not None:
        facts.append(("largest update", f"{merge.update_ratio:.3g} of its layer's weight (Frobenius norms)"))
    facts.append(("base", f"{_code(base_name)}, weights {_code(base['weights'])}, config {_code(base['config'])}"))
    source = version["metadata"].get("source")
    if isinstance(source, dict) and source.get("url"):
        facts.append(("fetched from", f"{_code(source['url'])}, SHA-256 {_code(source.get('sha256'))}"))
    lineage = _lineage(version)
    if not lineage:
        unknown = "not known: the adapter was pushed without a lineage"
        return [*facts, ("training", unknown if version["digest"] is not None else "none: it has no weights")]
    try:
        return [*facts, *_training(lineage)]
    except (AttributeError, KeyError, TypeError, ValueError):  # what an uploader sends as metadata is any JSON
        return [*facts, ("training", "not known: the lineage is not as Hatrack writes it")]


def _training(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the lineage of a job says."""
    facts = []
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


def _other_settings(version: AdapterVersion) -> list[str]:
    """Settings beside the system prompt that a gateway serves the version with."""
    settings = version["settings"]
    examples = len(settings.get("examples") or [])
    parts = [f"{examples} example{'s' if examples > 1 else ''} before every conversation"] if examples else []
    if sampling := settings.get("sampling"):
        parts.append("sampling " + ", ".join(f"{name} {_plain(str(value))}" for name, value in sampling.items()))
    if settings.get("grounding"):
        parts.append("passages of vector stores, by their ids in the gateway that it is from")
    return ["", f"Served with, as `settings.json` has it: {'; '.join(parts)}.", ""] if parts else []


def _evidence(version: AdapterVersion) -> list[str]:
    proof, verdict = version["proof"], version["verdict"]
    lines = []
    if proof is not None and "distance" in proof:
        lines.append(
            f"- Proof: over {proof['tokens']} tokens of probe texts, the adapter moved the base's log-probabilities by "
            f"{proof['distance']:.3g} nats a token in the engine (its own noise: {proof['noise']:.3g})."
        )
        if perplexity := proof.get("perplexity"):
            lines.append(f"- Perplexity of plain text: {perplexity['ratio']:.3g} times the base's.")
    if proof is not None and "prompt_tokens" in proof:
        fits = f"{proof['prompt_tokens']} of the context's {proof['context_tokens']} tokens"
        lines.append(f"- Proof: its prompt renders, and has {fits}.")
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
