"""Strict reading of GGUF headers (version 3, little-endian): no length or count in the file is trusted."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple

from ._errors import FormatError
from ._tensors import TENSORS_MAX, HeaderIncomplete, TensorInfo, elements

KEYS_MAX = 65_536
"""Most metadata keys."""
KEY_BYTES_MAX = 65_535
"""Longest metadata key, in bytes (GGUF specification)."""
NAME_BYTES_MAX = 4_096
"""Longest tensor name, in bytes."""
DIMS_MAX = 4
"""Most dimensions of a tensor (GGUF specification)."""
DEPTH_MAX = 4
"""Deepest nesting of arrays in metadata."""
ALIGNMENT_MAX = 1 << 20
"""Largest alignment of tensor data, in bytes."""

_ALIGNMENT_KEY = "general.alignment"
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# Bytes per metadata value type: u8 i8 u16 i16 u32 i32 f32 bool, string and array by their own lengths, u64 i64 f64.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# ggml type id: name, elements per block, bytes per block.
TYPES: Dict[int, Tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


def parse(data: Any, path: str, ready: Optional[int] = None) -> List[TensorInfo]:
    """The tensors of a file by offset. `data` is the whole file as bytes or a mapping, of which the first `ready`
    bytes are there (all, when None); a header that goes on after them raises HeaderIncomplete.

    Raises FormatError for another version or byte order, anything over a limit or past the end, a key or name that
    stands twice, an unknown type, and tensors that overlap or are not aligned.
    """
    reader = _Reader(data, path, len(data) if ready is None else ready)
    if reader.take(4) != b"GGUF":
        raise FormatError(f"{path}: not a GGUF file")
    version = reader.number("<I", 4)
    if version != 3:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian GGUF" if swapped == 3 else f"GGUF version {version}"
        raise FormatError(f"{path}: {what}; only version 3, little-endian, can be read", "convert it with llama.cpp")
    tensor_count = reader.number("<Q", 8)
    key_count = reader.number("<Q", 8)
    if tensor_count > TENSORS_MAX or key_count > KEYS_MAX:
        raise FormatError(f"{path}: the header claims {tensor_count} tensors and {key_count} keys, over the limits")
    alignment = _alignment(reader, key_count)
    entries = [_entry(reader) for _ in range(tensor_count)]
    if len({entry[0] for entry in entries}) != tensor_count:
        raise FormatError(f"{path}: two tensors have one name")
    start = -(-reader.at // alignment) * alignment
    infos = [_tensor(entry, start, alignment, len(data), path) for entry in entries]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    for one, two in zip(infos, infos[1:]):
        if two.offset < one.offset + one.nbytes:
            raise FormatError(f"{path}: tensor {two.name!r} overlaps {one.name!r}")
    return infos


class _Reader:
    """A place in the file that never passes its end, nor what is ready of it."""

    def __init__(self, data: Any, path: str, ready: int):
        self.data = data
        self.path = path
        self.ready = ready
        self.at = 0

    def skip(self, count: int) -> int:
        at = self.at
        if count > len(self.data) - at:
            raise FormatError(f"{self.path}: the GGUF header runs past the end of the file")
        if at + count > self.ready:
            raise HeaderIncomplete(at + count)
        self.at = at + count
        return at

    def take(self, count: int) -> bytes:
        at = self.skip(count)
        return bytes(self.data[at : at + count])

    def number(self, form: str, size: int) -> int:
        return struct.unpack_from(form, self.data, self.skip(size))[0]

    def text(self, bytes_max: int) -> str:
        length = self.number("<Q", 8)
        if length > bytes_max:
            raise FormatError(f"{self.path}: a name of {length} bytes is over the limit of {bytes_max}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: a name in the header is not UTF-8") from None


def _alignment(reader: _Reader, key_count: int) -> int:
    alignment = 32
    seen = set()
    for _ in range(key_count):
        key = reader.text(KEY_BYTES_MAX)
        if key in seen:
            raise FormatError(f"{reader.path}: the key {key[:100]!r} stands twice")
        seen.add(key)
        kind = reader.number("<I", 4)
        if key == _ALIGNMENT_KEY:
            alignment = reader.number("<I", 4) if kind == _UINT32 else 0
            if alignment < 1 or alignment > ALIGNMENT_MAX or alignment & (alignment - 1):
                raise FormatError(f"{reader.path}: {_ALIGNMENT_KEY} is not a usable power of two")
        else:
            _skip_value(reader, kind, 0)
    return alignment


def _skip_value(reader: _Reader, kind: int, depth: int) -> None:
    if kind == _STRING:
        reader.skip(reader.number("<Q", 8))
    elif kind == _ARRAY:
        if depth >= DEPTH_MAX:
            raise FormatError(f"{reader.path}: metadata arrays are nested deeper than {DEPTH_MAX}")
        item, count = reader.number("<I", 4), reader.number("<Q", 8)
        if item in _VALUE_BYTES:
            reader.skip(count * _VALUE_BYTES[item])
        else:
            # Each item takes 8 bytes or more, so the end of the file bounds this loop.
            for _ in range(count):
                _skip_value(reader, item, depth + 1)
    elif kind in _VALUE_BYTES:
        reader.skip(_VALUE_BYTES[kind])
    else:
        raise FormatError(f"{reader.path}: unknown metadata type {kind}")


_Entry = Tuple[str, Tuple[int, ...], int, int]


def _entry(reader: _Reader) -> _Entry:
    name = reader.text(NAME_BYTES_MAX)
    dims = reader.number("<I", 4)
    if dims > DIMS_MAX:
        raise FormatError(f"{reader.path}: tensor {name!r} has {dims} dimensions, over the limit of {DIMS_MAX}")
    shape = struct.unpack_from(f"<{dims}Q", reader.data, reader.skip(8 * dims))
    return name, tuple(reversed(shape)), reader.number("<I", 4), reader.number("<Q", 8)


def _tensor(entry: _Entry, start: int, alignment: int, file_bytes: int, path: str) -> TensorInfo:
    name, shape, kind, offset = entry
    where = f"{path}: tensor {name!r}"
    if kind not in TYPES:
        raise FormatError(f"{where} has the unknown type {kind}")
    dtype, block, block_bytes = TYPES[kind]
    count = elements(shape, where)
    row = shape[-1] if shape else 1
    if row % block:
        raise FormatError(f"{where} has rows of {row} elements, not a multiple of the {dtype} block of {block}")
    nbytes = count // block * block_bytes
    if offset % alignment:
        raise FormatError(f"{where} is not aligned to {alignment} bytes")
    if start + offset + nbytes > file_bytes:
        raise FormatError(f"{where} runs past the end of the file")
    return TensorInfo(name, dtype, shape, path, start + offset, nbytes)
