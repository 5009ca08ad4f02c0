"""What the engine is started with."""

import re
from pathlib import Path

import pytest

from service.config import Settings
from service.engine import config as config_module
from service.engine.config import EngineConfig, process_title
from service.errors import SettingsError


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
