"""HATRACK_ENGINES: the file with several engines, and what is refused of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from service.config.engines import engine_dirs, engine_settings
from service.errors import SettingsError

TWO_BASES = """
[[engine]]
name = "small"
base = "smollm2-135m-instruct"

[[engine]]
name = "large"
base = "hf://Qwen/Qwen3-4B-Instruct-2507@main"
base_name = "qwen"
slots = 16
kv_gib = 2
args = "--seed 1"
devices = "0-3"
"""


def settings(tmp_path: Path, text: str, **more: Any) -> Settings:
    path = tmp_path / "engines.toml"
    path.write_text(text)
    return Settings(home=tmp_path / "home", engines=path, engine_device="cpu", **more)


def refused(tmp_path: Path, text: str, **more: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        engine_settings(settings(tmp_path, text, **more))
    assert str(caught.value).startswith("HATRACK_ENGINES")
    return str(caught.value)


def test_without_a_file_there_is_one_engine_in_its_old_place(tmp_path: Path) -> None:
    only = Settings(home=tmp_path)
    assert engine_settings(only) == (only,)
    assert only.engine_dir == tmp_path / "engine"


def test_each_engine_has_the_gateway_s_settings_but_for_what_its_entry_says(tmp_path: Path) -> None:
    small, large = engine_settings(settings(tmp_path, TWO_BASES, engine_slots=4, queue_size=77))
    assert (small.base_served_name, small.engine_slots, small.engine_kv_gib) == ("smollm2-135m-instruct", 4, 1)
    assert (large.base_served_name, large.engine_slots, large.engine_kv_gib) == ("qwen", 16, 2)
    assert (large.engine_args, large.engine_devices, large.queue_size) == (("--seed", "1"), "0-3", 77)
    assert small.base_dir.name == "smollm2-135m-instruct"
    assert {small.engine_dir, large.engine_dir} == {tmp_path / "home/engines/small", tmp_path / "home/engines/large"}


def test_a_base_may_stand_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (only,) = engine_settings(settings(tmp_path, '[[engine]]\nname = "a"\nbase = "models/mine"\n'))
    assert (only.base_dir, only.base_served_name) == (tmp_path / "models" / "mine", "mine")


def test_every_folder_that_an_engine_had_is_found_again(tmp_path: Path) -> None:
    given = settings(tmp_path, TWO_BASES)
    (given.home / "engines" / "gone").mkdir(parents=True)
    assert engine_dirs(given) == [given.home / "engine", given.home / "engines" / "gone"]


ONE = '[[engine]]\nname = "a"\nbase = "m"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine = [", "is not TOML"),
        ("", "it must have 1 to 64 entries `[[engine]]`: Field required"),
        ("engine = []", "it must have 1 to 64 entries `[[engine]]`"),
        (
            "[engine]\nname = 'a'\n",
            "entries `[[engine]]`: Input should be an array; got an object",
        ),
        ("engine = [1]", "engine 1: Input should be an object; got 1"),
        (ONE + "[[engines]]\nname = 'b'\n", "the key `engines` is not known; the file has entries `[[engine]]` alone"),
        ("[[engine]]\nname = 'a'\n", "engine 1 (`a`): `base`: Field required"),
        (ONE + "[[engine]]\nbase = 'm'\n", "engine 2: `name`: Field required"),
        ("[[engine]]\nname = 'A b'\nbase = 'm'\n", "engine 1 (`A b`): `name`: String should match pattern"),
        ("[[engine]]\nname = 'a'\nbase = 7\n", "engine 1 (`a`): `base`: Input should be a valid string; got 7"),
        (
            ONE + "slotz = 3\n",
            "has the key `slotz`, which is not known; allowed are name, base, base_name, agent, args",
        ),
        (ONE + "slots = 0\n", "the engine `a`: slots: Input should be greater than or equal to 1 (found 0)"),
        (ONE + "slots = 'many'\n", "the engine `a`: slots: Input should be a valid integer"),
        (ONE + "url = 'ftp://x'\n", "the engine `a`: url: must be http://host:port"),
        (
            ONE + "url = 'http://x:1'\n[[engine]]\nname = 'b'\nbase = 'm'\nurl = 'http://x:1/'\n",
            "the engines `a` and `b` have the same `url` (http://x:1)",
        ),
        (ONE + ONE, "two engines have the name `a`"),
        (ONE + "[[engine]]\nname = 'b'\nbase = 'n'\nbase_name = 'm'\n", "serve different bases under the name `m`"),
        (ONE + "[[engine]]\nname = 'b'\nbase = 'm'\nbase_name = 'n'\n", "two names of one base"),
        (ONE + "[[engine]]\nname = 'b'\nbase = 'm'\ndtype = 'float16'\n", "with different `dtype` (bfloat16, float16)"),
        (ONE + "[[engine]]\nname = 'b'\nbase = 'm'\ncontext = 512\n", "with different `context` (2048, 512)"),
        (ONE + "[[engine]]\nname = 'b'\nbase = 'm'\nmax_rank = 64\n", "with different `max_rank` (32, 64)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text, engine_dtype="bfloat16")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml cannot be read"):
        engine_settings(Settings(home=tmp_path, engines=tmp_path / "absent.toml"))


@pytest.mark.parametrize("field", ["base_model", "base_name"])
def test_settings_that_say_otherwise_are_refused(tmp_path: Path, field: str) -> None:
    assert f"HATRACK_{field.upper()} are both set" in refused(tmp_path, TWO_BASES, **{field: "other"})


def test_engines_on_one_gpu_share_its_memory(tmp_path: Path) -> None:
    two = '[[engine]]\nname = "a"\nbase = "m"\ndevice = "cuda"\ndevices = "{}"\n'
    two += '[[engine]]\nname = "b"\nbase = "m"\ndevice = "cuda"\ndevices = "{}"\n'
    assert "the engines on GPU 0 would take 1.70" in refused(tmp_path, two.format("0", "0,1"))
    assert len(engine_settings(settings(tmp_path, two.format("0", "1")))) == 2
    assert "the engines on GPU 0 would take 1.70" in refused(tmp_path, two.format("", "0")), "it may take that one"
    assert "`devices` must list GPUs one by one, such as `0,1`; got '0-3'" in refused(tmp_path, two.format("0-3", "4"))


@pytest.mark.parametrize("fault", ["", "slots = 0\n", "bas = 'm'\n", "url = 7\n"])
def test_no_message_shows_an_engines_key(tmp_path: Path, fault: str) -> None:
    secret = "the-key-of-an-engine"
    for text in (
        f"[[engine]]\nname = 'a'\nkey = '{secret}'\n{fault}",
        f"[[engine]]\nname = 'a'\nbase = 'm'\nkey = '{secret}'\n{fault or 'slotz = 1'}",
        f"[[engines]]\nname = 'a'\nkey = '{secret}'\n",
        f"[[engine]]\nname = 'a'\nbase = 'm'\nkey = ['{secret}']\n",
    ):
        assert secret not in refused(tmp_path, text)


def test_a_base_that_is_spelt_in_two_ways_is_one(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    two = '[[engine]]\nname = "a"\nbase = "models/mine"\n[[engine]]\nname = "b"\nbase = "models/../models/mine"\n'
    assert [each.base_served_name for each in engine_settings(settings(tmp_path, two))] == ["mine", "mine"]


def test_a_socket_that_no_system_would_make_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(ONE)
    home = tmp_path / ("h" * 100)
    with pytest.raises(SettingsError, match=r"the engine `a`: the path of its socket, .*, and at most 107 are allowed"):
        engine_settings(Settings(home=home, engines=path, engine_device="cpu"))
