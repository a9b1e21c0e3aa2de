"""Small safetensors and GGUF files, made by hand so that the tests know every byte."""

import json
import struct


def safetensors(tensors, header=None, tail=b"", length=None):
    """`tensors`: name -> (dtype, shape, bytes). `header` replaces the JSON text, `length` its stated length."""
    table, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(table).encode() if header is None else header
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data + tail


def gguf_text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(tensors, keys=(), alignment=32, version=3, tensor_count=None, key_count=None, offsets=None):
    """`tensors`: list of (name, ne with the innermost dimension first, type id, bytes); `keys`: list of
    (key, type id, value bytes)."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors) if tensor_count is None else tensor_count,
                       len(keys) if key_count is None else key_count)  # fmt: skip
    for key, kind, value in keys:
        head += gguf_text(key) + struct.pack("<I", kind) + value
    data = b""
    for at, (name, ne, kind, raw) in enumerate(tensors):
        offset = len(data) if offsets is None else offsets[at]
        head += gguf_text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data
