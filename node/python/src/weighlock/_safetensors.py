"""Strict reading of safetensors headers: no length in the file is trusted."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, List, Optional, Tuple

from ._errors import FormatError
from ._tensors import DTYPES, TENSORS_MAX, HeaderIncomplete, TensorInfo, elements

HEADER_BYTES_MAX = 100_000_000
"""Largest header, in bytes, as in the reference implementation."""


def parse(data: Any, path: str, ready: Optional[int] = None) -> List[TensorInfo]:
    """The tensors of a file by offset. `data` is the whole file as bytes or a mapping, of which the first `ready`
    bytes are there (all, when None); a header that goes on after them raises HeaderIncomplete.

    Raises FormatError when the header is absurd or is not JSON, a key stands twice, a dtype is unknown, or the
    tensors do not cover the data exactly: overlap, hole, trailing or missing bytes.
    """
    if len(data) < 8:
        raise FormatError(f"{path}: {len(data)} bytes are too few for a safetensors file")
    ready = len(data) if ready is None else ready
    if ready < 8:
        raise HeaderIncomplete(8)
    (length,) = struct.unpack_from("<Q", data, 0)
    if length > HEADER_BYTES_MAX:
        raise FormatError(f"{path}: the header claims {length} bytes, over the limit of {HEADER_BYTES_MAX}")
    if length > len(data) - 8:
        raise FormatError(f"{path}: the header claims {length} bytes, the file has {len(data) - 8} after its length")
    if ready < 8 + length:
        raise HeaderIncomplete(8 + length)
    header = _header(bytes(data[8 : 8 + length]), path)
    if len(header) > TENSORS_MAX + 1:
        raise FormatError(f"{path}: more than {TENSORS_MAX} tensors")
    start = 8 + length
    infos = [_tensor(name, entry, start, path) for name, entry in header.items() if name != "__metadata__"]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    at = start
    for info in infos:
        if info.offset != at:
            what = "overlaps the one before" if info.offset < at else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {info.name!r} {what}")
        at += info.nbytes
    if at != len(data):
        what = "trailing" if at < len(data) else "missing"
        raise FormatError(f"{path}: {abs(len(data) - at)} {what} bytes at the end")
    return infos


def _header(raw: bytes, path: str) -> Dict[str, Any]:
    def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        if not raw.startswith(b"{"):
            raise ValueError("it does not begin with a brace")
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the safetensors header is not usable: {error}") from None
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not a table of texts")
    return header


def _tensor(name: str, entry: Any, start: int, path: str) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(_is_count(dim) for dim in shape):
        raise FormatError(f"{where} has a shape that is not a list of counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise FormatError(f"{where} has data_offsets that are not two counts")
    bits = elements(tuple(shape), where) * DTYPES[dtype].bits
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise FormatError(f"{where} takes {bits} bits as {dtype} {shape}, its offsets span {end - begin} bytes")
    return TensorInfo(name, dtype, tuple(shape), path, start + begin, end - begin)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64
