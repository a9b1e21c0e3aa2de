"""Reading safetensors and GGUF headers: what is in them, and what is refused."""

import json
import struct
import unittest

import makers

from weighlock import FormatError, TensorInfo, _gguf, _safetensors

F32_2x3 = struct.pack("<6f", *range(6))


class Safetensors(unittest.TestCase):
    def refused(self, data, pattern):
        with self.assertRaisesRegex(FormatError, pattern):
            _safetensors.parse(data, "m.safetensors")

    def test_reads_tensors_by_offset(self):
        data = makers.safetensors({"b": ("F32", [2, 3], F32_2x3), "a": ("BOOL", [], b"\1"), "none": ("I8", [0], b"")})
        infos = {info.name: info for info in _safetensors.parse(data, "m.safetensors")}
        start = 8 + struct.unpack_from("<Q", data)[0]
        self.assertEqual(infos["b"], TensorInfo("b", "F32", (2, 3), "m.safetensors", start, 24))
        self.assertEqual(infos["a"], TensorInfo("a", "BOOL", (), "m.safetensors", start + 24, 1))
        self.assertEqual(infos["none"].nbytes, 0)

    def test_packed_types_count_bits(self):
        self.assertEqual(_safetensors.parse(makers.safetensors({"a": ("F4", [3, 2], b"abc")}), "m")[0].nbytes, 3)
        self.assertEqual(_safetensors.parse(makers.safetensors({"a": ("F6_E2M3", [4], b"abc")}), "m")[0].nbytes, 3)
        self.refused(makers.safetensors({"a": ("F4", [3], b"ab")}), "12 bits")

    def test_metadata_and_empty_table(self):
        self.assertEqual(_safetensors.parse(makers.safetensors({}, b'{"__metadata__":{"a":"b"}}'), "m"), [])
        self.assertEqual(_safetensors.parse(makers.safetensors({}), "m"), [])
        self.refused(makers.safetensors({}, b'{"__metadata__":{"a":1}}'), "__metadata__")

    def test_lengths_are_not_trusted(self):
        self.refused(b"", "too few")
        self.refused(b"\0" * 7, "too few")
        self.refused(makers.safetensors({}, length=1 << 63), "over the limit")
        self.refused(makers.safetensors({}, length=1000), "claims 1000")
        whole = makers.safetensors({"a": ("F32", [2, 3], F32_2x3)})
        for cut in range(len(whole)):
            with self.assertRaises(FormatError, msg=f"accepted when cut to {cut} bytes"):
                _safetensors.parse(whole[:cut], "m")

    def test_data_must_be_covered_exactly(self):
        def two(first, second, data=b"\0" * 8):
            entry = {"dtype": "U8", "shape": [4]}
            table = {"a": {**entry, "data_offsets": first}, "b": {**entry, "data_offsets": second}}
            return makers.safetensors({}, json.dumps(table).encode(), data)

        self.assertEqual(len(_safetensors.parse(two([4, 8], [0, 4]), "m")), 2)
        self.refused(two([0, 4], [2, 6]), "overlaps")
        self.refused(two([0, 4], [5, 9], b"\0" * 9), "hole")
        self.refused(two([0, 4], [4, 8], b"\0" * 9), "1 trailing")
        self.refused(two([0, 4], [4, 8], b"\0" * 7), "1 missing")

    def test_entries_are_checked(self):
        def one(**changes):
            entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}
            return makers.safetensors({}, json.dumps({"a": entry}).encode(), b"\0" * 4)

        self.refused(one(dtype="U9"), "unknown dtype")
        self.refused(one(dtype=None), "unknown dtype")
        self.refused(one(shape=[-4]), "shape")
        self.refused(one(shape=[True, 4]), "shape")
        self.refused(one(shape=[4.0]), "shape")
        self.refused(one(shape=[5]), "40 bits")
        self.refused(one(shape=[1 << 62, 1 << 62, 0]), "too many")
        self.refused(one(data_offsets=[0]), "two counts")
        self.refused(one(data_offsets=[4, 0]), "span -4")
        self.refused(one(data_offsets=[0, 1 << 70]), "two counts")
        self.refused(one(extra=1), "nothing else")

    def test_json_is_strict(self):
        good = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        self.refused(makers.safetensors({}, b'{"a":' + good + b',"a":' + good + b"}"), "twice")
        self.refused(makers.safetensors({}, b"[]"), "brace")
        self.refused(makers.safetensors({}, b" {}"), "brace")
        self.refused(makers.safetensors({}, b'{"a":NaN}'), "NaN")
        self.refused(makers.safetensors({}, b'{"\xff":1}'), "not usable")
        self.refused(makers.safetensors({}, b'{"a":' + b"[" * 100_000), "not usable")
        self.refused(makers.safetensors({}, b'{"a":' + b"9" * 10_000 + b"}"), "not usable|data_offsets")


class Gguf(unittest.TestCase):
    TENSORS = [
        ("f", [3, 2], 0, F32_2x3),
        ("q", [64, 2], 2, bytes(72)),
        ("h", [5], 1, bytes(10)),
    ]

    def refused(self, data, pattern):
        with self.assertRaisesRegex(FormatError, pattern):
            _gguf.parse(data, "m.gguf")

    def test_reads_tensors_outermost_dimension_first(self):
        data = makers.gguf(self.TENSORS)
        infos = {info.name: info for info in _gguf.parse(data, "m.gguf")}
        self.assertEqual(infos["f"].shape, (2, 3))
        self.assertEqual((infos["q"].dtype, infos["q"].shape, infos["q"].nbytes), ("Q4_0", (2, 64), 72))
        self.assertEqual(data[infos["f"].offset :][:24], F32_2x3)
        self.assertEqual(infos["q"].offset - infos["f"].offset, 32)

    def test_steps_over_all_metadata_types(self):
        text = makers.gguf_text("some text")
        keys = [(f"k{kind}", kind, bytes(size)) for kind, size in _gguf._VALUE_BYTES.items()]
        keys += [
            ("text", 8, text),
            ("numbers", 9, struct.pack("<IQ", 5, 3) + bytes(12)),
            ("texts", 9, struct.pack("<IQ", 8, 2) + text + text),
            ("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 2) + bytes(2)),
            ("general.alignment", 4, struct.pack("<I", 64)),
        ]
        data = makers.gguf(self.TENSORS, keys, alignment=64)
        infos = _gguf.parse(data, "m.gguf")
        self.assertEqual(infos[0].offset % 64, 0)
        self.assertEqual(data[infos[0].offset :][:24], F32_2x3)

    def test_lengths_and_counts_are_not_trusted(self):
        keys = [("text", 8, makers.gguf_text("some text")), ("n", 9, struct.pack("<IQ", 5, 3) + bytes(12))]
        whole = makers.gguf(self.TENSORS, keys)
        last = max(info.offset + info.nbytes for info in _gguf.parse(whole, "m"))
        for cut in range(last):
            with self.assertRaises(FormatError, msg=f"accepted when cut to {cut} bytes"):
                _gguf.parse(whole[:cut], "m")
        self.refused(makers.gguf([], tensor_count=1 << 60), "over the limits")
        self.refused(makers.gguf([], key_count=1 << 60), "over the limits")
        self.refused(makers.gguf([], tensor_count=1000), "past the end")
        self.refused(makers.gguf([], [("k", 8, struct.pack("<Q", 1 << 63))]), "past the end")
        self.refused(makers.gguf([], [("k", 9, struct.pack("<IQ", 12, 1 << 62))]), "past the end")
        self.refused(makers.gguf([], [("k", 9, struct.pack("<IQ", 8, 1 << 62))]), "past the end")
        deep = struct.pack("<IQ", 9, 1) * 10_000
        self.refused(makers.gguf([], [("k", 9, deep)]), "nested")
        self.refused(makers.gguf([("n" * 5000, [1], 0, bytes(4))]), "over the limit")

    def test_versions_and_byte_order(self):
        self.refused(b"GGML" + bytes(100), "not a GGUF")
        self.refused(makers.gguf([], version=1), "version 1")
        self.refused(makers.gguf([], version=3 << 24), "big-endian")

    def test_tensors_are_checked(self):
        self.refused(makers.gguf([("a", [33], 2, bytes(32))]), "block of 32")
        self.refused(makers.gguf([("a", [1], 4, bytes(4))]), "unknown type 4")
        self.refused(makers.gguf([("a", [1] * 5, 0, bytes(4))]), "5 dimensions")
        self.refused(makers.gguf([("a", [1 << 62, 1 << 62], 0, bytes(4))]), "too many")
        self.refused(makers.gguf([("a", [1 << 40], 0, bytes(4))]), "past the end")
        one = ("a", [8], 0, bytes(32))
        self.refused(makers.gguf([one], offsets=[16]), "aligned")
        self.refused(makers.gguf([one], offsets=[1 << 63]), "past the end")
        self.refused(makers.gguf([one, one]), "one name")
        self.refused(makers.gguf([one, ("b", [8], 0, bytes(32))], offsets=[0, 0]), "overlaps")

    def test_keys_are_checked(self):
        self.refused(makers.gguf([], [("k", 0, b"\0"), ("k", 0, b"\0")]), "twice")
        self.refused(makers.gguf([], [("k", 77, b"\0")]), "unknown metadata type 77")
        for value in (0, 3, 1 << 31):
            self.refused(makers.gguf([], [("general.alignment", 4, struct.pack("<I", value))]), "power of two")
        self.refused(makers.gguf([], [("general.alignment", 10, struct.pack("<Q", 32))]), "power of two")


if __name__ == "__main__":
    unittest.main()
