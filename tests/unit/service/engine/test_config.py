"""What the engine is started with."""

import json
import re
from pathlib import Path

import pytest

from adapters.base import BaseDescription, Fingerprint, ModuleShape
from adapters.chat_template import served_template
from service.config import Settings
from service.engine import config as config_module
from service.engine.config import EngineConfig, process_title
from service.errors import SettingsError
from tests.support.templates import REFUSES_SYSTEM


def config_for(tmp_path: Path, **settings: object) -> EngineConfig:
    return EngineConfig.from_settings(Settings(home=tmp_path, base_model=str(tmp_path), **settings))  # type: ignore[arg-type]


def test_the_engine_gets_no_key_and_no_setting_of_ours(tmp_path: Path) -> None:
    inherited = {
        "PATH": "/bin",
        "HATRACK_ADMIN_KEY": "secret",
        "VLLM_API_KEY": "secret",
        "VLLM_RAISE_ON_LOGIT_NANS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    }
    environment = config_for(tmp_path).environment("token", inherited)
    assert environment["PATH"] == "/bin"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert "secret" not in environment.values()
    assert "VLLM_RAISE_ON_LOGIT_NANS" not in environment


def test_the_engine_carries_its_mark_and_the_containment(tmp_path: Path) -> None:
    environment = config_for(tmp_path).environment("token", {})
    assert environment["HATRACK_ENGINE_TOKEN"] == "token"
    assert environment["VLLM_PROCESS_NAME_PREFIX"] == process_title("token")
    assert environment["VLLM_PLUGINS"] == "hatrack"
    assert environment["VLLM_COMPUTE_NANS_IN_LOGITS"] == "1"
    assert environment["HATRACK_PLUGIN_STORE"] == str(tmp_path / "adapters")


def test_only_the_settings_and_the_plugin_read_the_environment() -> None:
    service = Path(config_module.__file__).parents[1]
    readers = {
        path.relative_to(service).as_posix()
        for path in service.rglob("*.py")
        if re.search(r"^[^'\"#`]*\bos\.(environ|getenv)\b", path.read_text(), re.MULTILINE)
    }
    assert readers == {"config/__init__.py", "engine/plugin/parameters.py"}


@pytest.mark.parametrize("flag", ["--max-loras", "--uds=/tmp/other", "--api-key"])
def test_an_extra_flag_may_not_repeat_one_of_ours(tmp_path: Path, flag: str) -> None:
    with pytest.raises(SettingsError, match=flag.split("=")[0]):
        config_for(tmp_path, engine_args=(flag,))


def test_a_base_with_experts_names_the_layers_that_the_engine_prepares(tmp_path: Path) -> None:
    def base(*modules: str) -> BaseDescription:
        fingerprint = Fingerprint(**dict.fromkeys(Fingerprint.model_fields, "x"))
        return BaseDescription("b", fingerprint, dict.fromkeys(modules, ModuleShape(2, 2, 1.0)), frozenset(), 0.02)

    settings = Settings(home=tmp_path, base_model=str(tmp_path))
    dense = base("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
    assert "--lora-target-modules" not in EngineConfig.from_settings(settings, dense).argv()
    experts = base("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate", "model.layers.0.mlp.experts.3.up_proj")
    argv = EngineConfig.from_settings(settings, experts).argv()
    start = argv.index("--lora-target-modules")
    assert argv[start + 1] == "q_proj"
    assert argv[start + 2].startswith("--")


def test_the_engine_reads_the_template_that_the_trainer_renders_with(tmp_path: Path) -> None:
    assert "--chat-template" not in config_for(tmp_path).argv()
    (tmp_path / "chat_template.jinja").write_text(REFUSES_SYSTEM)
    config = config_for(tmp_path)
    argv = config.argv()
    file = Path(argv[argv.index("--chat-template") + 1])
    config.write_template()
    assert file.read_text() == served_template(tmp_path)


def test_on_a_cpu_a_step_is_short_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    def value(flag: str, **settings: object) -> list[str]:
        argv = config_for(tmp_path, **settings).argv()
        return [argv[at + 1] for at, each in enumerate(argv) if each == flag]

    step, chunk = "--max-num-batched-tokens", "--long-prefill-token-threshold"
    assert (value(step, engine_device="cpu"), value(chunk, engine_device="cpu")) == (["256"], ["128"])
    assert value(step, engine_device="cpu", engine_max_seqs=512) == ["512"], "each sequence takes a token of a step"
    assert value(step, engine_device="cpu", engine_args=(step, "4096"))[-1] == "4096", "argparse takes the last"
    assert (value(step, engine_device="cuda"), value(chunk, engine_device="cuda")) == ([], [])
    (tmp_path / "config.json").write_text('{"n_positions": 64}')
    assert value(chunk, engine_device="cpu") == ["64"], "vLLM starts with no more than the context"


@pytest.mark.parametrize(("positions", "context"), [(1024, 1024), (32_768, 2048), (None, 2048)])
def test_the_context_is_at_most_what_the_model_has(tmp_path: Path, positions: int | None, context: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": positions}}))
    settings = Settings(home=tmp_path, base_model=str(tmp_path), engine_device="cpu")
    assert settings.context == context
    assert settings.model_copy(update={"engine_context": 512}).context == 512
    (tmp_path / "config.json").write_text('{"n_positions": 1024}')  # GPT-2's name for it
    assert settings.context == 1024
    (tmp_path / "config.json").write_text("not JSON")
    assert settings.context == 2048
