import json
import os
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adapters import tensorfile
from adapters.errors import PickleRefused, WeightsError, WeightsInvalid
from adapters.tensorfile import MAX_HEADER_BYTES, column_chunks, open_matrix, read_header, row_chunks


def written(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


def test_reads_what_safetensors_writes(file: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.arange(4, dtype=np.float16).reshape(4, 1),
        "bf16": np.arange(8).reshape(2, 4).astype(ml_dtypes.bfloat16),
    }
    save_file(arrays, file, metadata={"format": "pt"})
    header = read_header(file)
    assert {name: tensor.shape for name, tensor in header.items()} == {name: a.shape for name, a in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(open_matrix(file, header[name])), array)


def test_chunks_cover_every_value_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "CHUNK_ELEMENTS", 10)
    values = np.random.default_rng(0).standard_normal((7, 5)).astype(ml_dtypes.bfloat16)
    save_file({"w": values}, file)
    matrix = open_matrix(file, read_header(file)["w"])
    rows, columns = list(row_chunks(matrix)), list(column_chunks(matrix))
    assert max(chunk.size for chunk in [*rows, *columns]) <= 10
    np.testing.assert_array_equal(np.vstack(rows), values.astype(np.float64))
    np.testing.assert_array_equal(np.hstack(columns), values.astype(np.float64))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"\0" * 6),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\0" * 12),
        ({"a": entry("F32", [1], 4, 8)}, b"\0" * 8),
        ({"a": entry("F32", [2], 0, 8)}, b"\0" * 7),
        ({"a": entry("F32", [2], 0, 8)}, b"\0" * 9),
        ({"a": entry("F32", [2], 0, 4)}, b"\0" * 4),
        ({"a": entry("F32", [2], 8, 0)}, b""),
        ({"a": entry("F32", [-1], 0, 0)}, b""),
        ({"a": entry("F32", [2**60, 2**60], 0, 4)}, b"\0" * 4),
        ({"a": entry("F32", [1] * 9, 0, 4)}, b"\0" * 4),
        ({"a": entry("F99", [1], 0, 4)}, b"\0" * 4),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, b"\0" * 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"\0" * 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}}, b"\0" * 4),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
        ({"a": {**entry("F32", [1], 0, 4), "path": "/etc/passwd"}}, b"\0" * 4),
        ({"a": None}, b""),
        ({"__metadata__": {"format": 1}}, b""),
        ({"__metadata__": "pt"}, b""),
        (b'{"a":1,"a":1}', b""),
        (b"{" + b"[" * 100_000, b""),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
        (b'{"\xff":1}', b""),
        (b"{nonsense}", b""),
        (b'["x"]', b""),
    ],
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(file: Path, header: object, data: bytes) -> None:
    with pytest.raises(WeightsInvalid):
        read_header(written(file, header, data))


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0" * 8, b"\xff" * 16, b"{}", b"hello, world, this is text", b"GGUF" * 10]
)
def test_what_is_not_safetensors_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(WeightsInvalid):
        read_header(file)


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps({"a": 1}, protocol) for protocol in (2, 3, 4, 5)),
        b"PK\x03\x04" + b"\0" * 40,
        b"\x1f\x8b" + b"\0" * 20,
    ],
)
def test_pickles_and_archives_are_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(PickleRefused):
        read_header(file)


def test_a_header_whose_length_begins_like_a_pickle_is_read(file: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    written(file, header.ljust(0x0280))
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(file)) == ["a"]


def test_a_header_over_the_bound_is_not_read(file: Path) -> None:
    with file.open("wb") as out:
        out.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
        out.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(WeightsInvalid, match="bytes"):
        read_header(file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(WeightsInvalid):
            read_header(path)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
@given(st.data())
def test_a_file_with_some_bytes_changed_reads_or_is_refused(file: Path, data: st.DataObject) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones((1, 2), np.float16)}, file)
    content = bytearray(file.read_bytes())
    for position, byte in data.draw(
        st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), max_size=6)
    ).items():
        content[position] = byte
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    file.write_bytes(content)
    try:
        tensors = read_header(file)
    except WeightsError:
        return
    assert all(0 <= tensor.start <= tensor.end <= len(content) for tensor in tensors.values())
