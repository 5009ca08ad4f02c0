"""The files of a checkpoint: weights, tokenizer and chat template."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapters.errors import BaseInvalid

MAX_JSON_BYTES: Final = 256 * 1024 * 1024
"""For comparison: tokenizer.json of a large vocabulary takes 35 MB."""

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "added_tokens.json",
    "special_tokens_map.json",
)
"""Without tokenizer_config.json, which also contains the template and who saved it."""

VOLATILE_TOKENIZER_KEYS: Final = frozenset(
    {"chat_template", "name_or_path", "transformers_version", "local_files_only"}
)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises BaseInvalid if it is missing, too large or not an object."""
    if not path.is_file():
        raise BaseInvalid(f"{path.parent} has no {path.name}.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BaseInvalid(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BaseInvalid(f"{path} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise BaseInvalid(f"{path} is not a JSON object.")
    return content


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, ASCII: equal objects give equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name. Raises BaseInvalid if one is missing."""
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BaseInvalid(f"{index} has no weight_map.")
        names = {str(name) for name in weight_map.values()}
        if any(Path(name).name != name for name in names):
            raise BaseInvalid(f"{index} refers to a file outside of its directory.")
        files = [model_dir / name for name in sorted(names)]
    else:
        files = [model_dir / "model.safetensors"]
    for path in files:
        if not path.is_file():
            raise BaseInvalid(f"{model_dir} has no {path.name}.")
    return files


def tokenizer_files(model_dir: Path) -> dict[str, bytes]:
    """The content of each file that decides how text becomes tokens, by name."""
    parts = {name: (model_dir / name).read_bytes() for name in TOKENIZER_FILES if (model_dir / name).is_file()}
    config = model_dir / "tokenizer_config.json"
    if config.is_file():
        content = read_json(config)
        parts[config.name] = canonical_json({k: v for k, v in content.items() if k not in VOLATILE_TOKENIZER_KEYS})
    return parts


def template_of(model_dir: Path) -> dict[str, bytes]:
    """The chat template's text: a separate file takes precedence over tokenizer_config.json. Empty if there is none."""
    jinja = model_dir / "chat_template.jinja"
    if jinja.is_file():
        return {"template": jinja.read_bytes()}
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = model_dir / name
        template = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, str) and template:
            return {"template": template.encode("utf-8", "surrogatepass")}
        if template:
            return {"templates": canonical_json({"templates": template})}
    return {}
