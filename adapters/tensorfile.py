"""Reading untrusted safetensors files: first the bounded header, then values in chunks, never the whole file.

The format (https://huggingface.co/docs/safetensors): eight bytes little-endian N, N bytes of JSON, then the data. The
JSON maps each tensor's name to dtype, shape and the half-open range of its bytes in the data; the ranges must cover the
data without overlap or hole, in any order.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from adapters.errors import PickleRefused, WeightsInvalid

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
"""The largest accepted header. 37,000 tensors of a mixture of experts take 6 MB; the format allows 100 MB."""

MAX_DIMENSIONS: Final = 8
CHUNK_ELEMENTS: Final = 1 << 20
"""Elements converted at once: 8 MiB as float64."""

FLOATS: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes whose values can be read here. ml_dtypes is bfloat16 for numpy."""

_BYTES_PER_ELEMENT: Final[Mapping[str, int]] = {
    **{"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4},
    **{"F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I8": 1, "U8": 1, "BOOL": 1},
}
_ARCHIVES: Final = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header: `start` and `end` are offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of their data.

    Does not read the data. Raises PickleRefused for a pickle or an archive, WeightsInvalid for anything else that is
    not a well-formed safetensors file of exactly the length that its header declares, OSError if it cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise WeightsInvalid("The weights are not a regular file.")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return _parse(file, size)


def loaded_bytes(path: Path, dtype: str) -> int:
    """The bytes that a file's tensors take once their floating-point values are in a data type as torch names it; those
    of quantized weights stay as they are. Raises as `read_header`."""
    widths = {"float32": 4, "bfloat16": 2, "float16": 2}
    return sum(
        math.prod(tensor.shape) * widths[dtype] if tensor.dtype in FLOATS else tensor.end - tensor.start
        for tensor in read_header(path).values()
    )


def _parse(file: BinaryIO, size: int) -> dict[str, Tensor]:
    start = file.read(16)
    length = int.from_bytes(start[:8], "little")
    # A header whose length happens to begin like a pickle is still a header: the brace decides.
    if size < 10 or length > size - 8 or start[8:9] != b"{":
        if start.startswith(_ARCHIVES) or (start[:1] == b"\x80" and 2 <= start[1] <= 5):
            raise PickleRefused(
                "The weights are a pickle or an archive, which is never opened. Send adapter_model.safetensors."
            )
        raise WeightsInvalid("The weights are not a safetensors file, or are truncated.")
    if length > MAX_HEADER_BYTES:
        raise WeightsInvalid(f"The header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed.")
    file.seek(8)
    header = _json(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsInvalid("The header's __metadata__ must be an object of strings.")
    tensors = sorted(
        (_entry(name, entry, 8 + length) for name, entry in header.items()), key=lambda t: (t.start, t.end)
    )
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            raise WeightsInvalid("Two tensors overlap, or there is a gap between them.", param=tensor.name[:256])
        end = tensor.end
    if end != size:
        raise WeightsInvalid(
            f"The file has {size} bytes but its header describes {end}: it is truncated, or data was appended.",
            details={"bytes": size, "expected": end},
        )
    return {tensor.name: tensor for tensor in tensors}


def _json(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        # an escaped lone surrogate is not text: no answer could hold the tensor's name
        json.dumps(header, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise WeightsInvalid("The header is nested too deeply.") from None
    except ValueError as error:
        raise WeightsInvalid("The header is not valid JSON.") from error
    if not isinstance(header, dict):
        raise WeightsInvalid("The header is not a JSON object.")
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsInvalid("The header has a duplicate key.")
    return result


def _entry(name: str, entry: object, data_start: int) -> Tensor:
    param = name[:256]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsInvalid(
            "A tensor's entry in the header must have exactly dtype, shape and data_offsets.", param=param
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES_PER_ELEMENT:
        raise WeightsInvalid(f"The header has the unknown dtype {str(dtype)[:40]!r}.", param=param)
    if not _is_sizes(shape, MAX_DIMENSIONS) or not _is_sizes(offsets, 2) or len(offsets) != 2:
        raise WeightsInvalid("A tensor's shape and data_offsets must be non-negative integers.", param=param)
    begin, end = offsets
    if end - begin != math.prod(shape) * _BYTES_PER_ELEMENT[dtype]:
        raise WeightsInvalid(f"A {dtype} tensor of shape {shape} does not take {end - begin} bytes.", param=param)
    return Tensor(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _is_sizes(value: object, max_length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= max_length
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**48 for item in value)
    )


def open_matrix(path: Path, tensor: Tensor) -> NDArray[Any]:
    """A two-dimensional tensor of a dtype in FLOATS as a memory map: shape [rows, columns], nothing read yet.

    `tensor` must come from read_header() of this file, which must not change while it is mapped.
    """
    return np.memmap(path, dtype=FLOATS[tensor.dtype], mode="r", offset=tensor.start, shape=tensor.shape)


def row_chunks(matrix: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """The rows of [rows, columns] in blocks of about CHUNK_ELEMENTS values, as float64."""
    step = max(1, CHUNK_ELEMENTS // max(1, matrix.shape[1]))
    for row in range(0, matrix.shape[0], step):
        yield _as_float64(matrix[row : row + step])


def column_chunks(matrix: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """The columns of [rows, columns] in blocks of about CHUNK_ELEMENTS values, as float64."""
    step = max(1, CHUNK_ELEMENTS // max(1, matrix.shape[0]))
    for column in range(0, matrix.shape[1], step):
        yield _as_float64(matrix[:, column : column + step])


def _as_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):  # the caller checks for NaN
        return values.astype(np.float64)
