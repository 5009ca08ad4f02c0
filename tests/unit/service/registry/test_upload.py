from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from adapters.errors import PickleRefused
from service.errors import BadRequest, HatrackError, TooLarge, UnknownField, WrongMediaType
from service.registry.upload import ReceivedUpload, parse_settings, receive, refuse_unsafe

HEADERS = {"content-type": "multipart/form-data; boundary=cut"}
WEIGHTS = (64).to_bytes(8, "little") + b"{" + bytes(range(256)) * 20


def body(*parts: tuple[str, bytes], filename: str = "x.safetensors", end: bytes = b"--cut--\r\n") -> bytes:
    text = b""
    for name, value in parts:
        file = f'; filename="{filename}"' if name == "weights" else ""
        text += f'--cut\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    return text + end


async def send(data: bytes, *, step: int = 1000, headers: dict[str, str] = HEADERS) -> tuple[ReceivedUpload, bytes]:
    written = bytearray()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), step):
            yield data[start : start + step]

    def write(piece: bytes) -> None:
        written.extend(piece)

    return await receive(headers, chunks(), write, max_weights=10_000), bytes(written)


PLAIN = (("name", b"voice"), ("config", b"{}"), ("weights", WEIGHTS))


@pytest.mark.parametrize("step", [1, 7, 1000, 100_000])
async def test_every_part_arrives_whole_however_it_is_cut(step: int) -> None:
    settings = {"system_prompt": "Be kind.", "sampling": {"temperature": 0.2, "stop": ["\n"]}}
    upload, written = await send(
        body(
            *PLAIN,
            ("readme", b"# hi"),
            ("metadata", b'{"run": 7}'),
            ("settings", json.dumps(settings).encode()),
            ("alias", b""),
        ),
        step=step,
    )
    assert written == WEIGHTS
    assert (upload.name, upload.config, upload.readme, upload.alias) == ("voice", b"{}", b"# hi", "")
    assert upload.metadata == {"run": 7}
    assert upload.settings.system_prompt == "Be kind."
    assert upload.settings.sampling == {"temperature": 0.2, "stop": ["\n"]}


async def test_a_missing_alias_is_not_an_empty_one() -> None:
    upload, _ = await send(body(*PLAIN))
    assert upload.alias is None


@pytest.mark.parametrize(
    ("data", "error", "param"),
    [
        (body(*PLAIN, ("colour", b"red")), UnknownField, "colour"),
        (body(*PLAIN, ("name", b"again")), BadRequest, "name"),
        (body(PLAIN[0], PLAIN[2]), BadRequest, "config"),
        (body(PLAIN[0], PLAIN[1]), BadRequest, "weights"),
        (body(*PLAIN[1:]), BadRequest, "name"),
        (body(*PLAIN, ("metadata", b"[1]")), BadRequest, "metadata"),
        (body(*PLAIN, ("metadata", b"{")), BadRequest, "metadata"),
        (body(*PLAIN, ("alias", b"\xff")), BadRequest, "alias"),
        (body(*PLAIN, ("settings", b'{"colour": 1}')), UnknownField, "settings.colour"),
        (body(PLAIN[0], ("config", b"x" * (1024 * 1024 + 1)), end=b""), TooLarge, None),
        (body(PLAIN[0], PLAIN[1], ("weights", WEIGHTS * 2)), TooLarge, "weights"),
        (body(*PLAIN, end=b""), BadRequest, None),
        (b"no form at all", BadRequest, None),
        (b"", BadRequest, None),
    ],
)
async def test_what_is_wrong_is_named(data: bytes, error: type[HatrackError], param: str | None) -> None:
    with pytest.raises(error) as raised:
        await send(data)
    assert type(raised.value) is error
    if param is not None:
        assert raised.value.param == param


@pytest.mark.parametrize("kind", ["multipart/form-data", "", "text/plain; boundary=cut"])
async def test_another_media_type_is_refused(kind: str) -> None:
    with pytest.raises(WrongMediaType):
        await send(body(*PLAIN), headers={"content-type": kind})


async def test_a_declared_length_over_the_bound_is_refused_before_anything_is_read() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with pytest.raises(TooLarge):
        await receive(HEADERS | {"content-length": "99999999999"}, unread(), lambda piece: None, max_weights=10_000)


@pytest.mark.parametrize("name", ["adapter_model.bin", "a.PT", "x.safetensors.zip", "b.pkl"])
async def test_a_pickle_is_refused_by_its_name_unread(name: str) -> None:
    with pytest.raises(PickleRefused):
        await send(body(*PLAIN, filename=name))


@pytest.mark.parametrize("head", [b"\x80\x04\x95" + b"\0" * 13, b"PK\x03\x04" + b"x" * 12, b"\x1f\x8b" + b"x" * 14])
async def test_a_pickle_is_refused_by_its_first_bytes(head: bytes) -> None:
    with pytest.raises(PickleRefused):
        await send(body(*PLAIN[:2], ("weights", head + WEIGHTS)), step=3)


def test_a_safetensors_header_that_begins_like_a_pickle_passes() -> None:
    refuse_unsafe((0x280).to_bytes(8, "little") + b'{"a":{}}')


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"temperature": 3}, "settings.sampling.temperature"),
        ({"temperature": True}, "settings.sampling.temperature"),
        ({"seed": 0.5}, "settings.sampling.seed"),
        ({"stop": [""]}, "settings.sampling.stop"),
        ({"stop": ["a"] * 17}, "settings.sampling.stop"),
        ({"lora_path": "/etc"}, "settings.sampling.lora_path"),
    ],
)
def test_sampling_defaults_are_bounded(sampling: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_settings({"sampling": sampling})
    assert raised.value.param == param
