"""Tensors through the client, against a test server that serves small files (not a daemon)."""

import contextlib
import gc
import io
import json
import struct
import sys
import unittest
from unittest import mock

import makers
from case import REF, Case
from loader_server import LoaderServer

import weighlock
from weighlock import __main__ as command

try:
    import numpy
except ImportError:
    numpy = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None
try:
    import torch
except ImportError:
    torch = None

F32_2x3 = struct.pack("<6f", *range(6))


class TensorsWithoutNumpy(Case):
    def setUp(self):
        super().setUp()
        self.put("model-1.safetensors", makers.safetensors({"a": ("F32", [2, 3], F32_2x3)}))
        self.put(
            "model-2.SAFETENSORS", makers.safetensors({"b": ("BF16", [2], b"\x80\x3f\0\0"), "z": ("F32", [0], b"")})
        )
        self.put("model.gguf", makers.gguf([("g", [3, 2], 0, F32_2x3), ("q", [32, 2], 2, bytes(range(36)))]))
        self.put("README.md", b"text")

    def test_bytes_and_infos_over_all_files(self):
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            self.assertEqual(set(artifact.tensor_info()), {"a", "b", "z", "g", "q"})
            self.assertEqual(sum(r["op"] == "fds" for r in server.requests), 1, "all headers by one request")
            info = artifact.tensor_info("q")
            self.assertEqual((info.dtype, info.shape, info.path), ("Q4_0", (2, 32), "model.gguf"))
            view = artifact.tensor_bytes("a")
            self.assertTrue(view.readonly)
            self.assertEqual(view, F32_2x3)
            self.assertEqual(artifact.tensor_bytes("q"), bytes(range(36)))
            self.assertEqual(artifact.tensor_bytes("z"), b"")
            self.assertIs(artifact.tensors(), artifact.tensors())
            self.assertEqual(set(artifact.tensors("model.gguf")), {"g", "q"})
            with self.assertRaisesRegex(weighlock.NotFound, "did you mean"):
                artifact.tensor_bytes("gg")
        self.assertEqual(view, F32_2x3, "a view outlives the artifact")

    def test_one_name_in_two_files(self):
        self.put("other.gguf", makers.gguf([("g", [1], 0, bytes(4))]))
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            with self.assertRaisesRegex(
                weighlock.Invalid, r"'g' is both in model.gguf and in other.gguf\nhint: .*tensors"
            ):
                artifact.tensors()
            self.assertEqual(len(artifact.tensors("other.gguf")), 1)

    def test_bad_header_is_named(self):
        self.put("bad.safetensors", b"\xff" * 100)
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            with self.assertRaisesRegex(weighlock.FormatError, "bad.safetensors: the header claims"):
                artifact.tensors()

    def test_without_numpy_or_torch_the_error_says_what_to_do(self):
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            with mock.patch.dict(sys.modules, {"numpy": None, "torch": None}):
                with self.assertRaisesRegex(weighlock.MissingDependency, "tensor_bytes"):
                    artifact.tensors()["a"]
                with self.assertRaisesRegex(weighlock.MissingDependency, "pip install torch"):
                    artifact.torch("a")

    def test_command_lists_files_and_tensors(self):
        self.put("other.gguf", makers.gguf([("g\x1b[2J", [1], 0, bytes(4)), ("g", [], 0, bytes(4))]))
        with LoaderServer(self.root) as server:

            def run(*arguments):
                out, err = io.StringIO(), io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = command.main([*arguments, "--socket", server.path])
                return code, out.getvalue(), err.getvalue()

            code, out, err = run(REF)
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, r"4 B +other +b{16} +README.md")
            self.assertRegex(out, r"36 B +Q4_0 +q +\(2 x 32\)")
            self.assertIn("g\\x1b[2J  (1)", out)
            self.assertIn("(scalar)", out)
            self.assertNotIn("\x1b", out)
            report = json.loads(run(REF, "--json")[1])
            self.assertEqual((len(report["files"]), len(report["tensors"])), (5, 7))
            self.assertEqual(run("a/b:1"), (4, "", "error: no a/b:1\nhint: weighlock ls\n"))
        self.assertEqual(run(REF)[0], 6, "nobody listens any more")


@unittest.skipIf(numpy is None, "NumPy is not installed")
class TensorsWithNumpy(Case):
    def open_one(self, data, name="m.safetensors"):
        self.put(name, data)
        server = LoaderServer(self.root)
        self.addCleanup(server.__exit__)
        artifact = weighlock.open(REF, server.path)
        self.addCleanup(artifact.close)
        return artifact

    def test_native_types_are_equal_and_share_the_mapping(self):
        types = {
            "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
            "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
        }  # fmt: skip
        wanted = {name: (numpy.arange(6) % 2).astype(kind).reshape(2, 3) for name, kind in types.items()}
        artifact = self.open_one(
            makers.safetensors({name: (name, [2, 3], array.tobytes()) for name, array in wanted.items()})
        )
        tensors = artifact.tensors()
        mapping = artifact["m.safetensors"].mmap()
        start = numpy.frombuffer(mapping, "u1").ctypes.data
        for name, array in wanted.items():
            with self.subTest(dtype=name):
                self.assertEqual(tensors[name].dtype, array.dtype)
                numpy.testing.assert_array_equal(tensors[name], array)
                self.assertFalse(tensors[name].flags.writeable)
                self.assertFalse(tensors[name].flags.owndata)
                self.assertEqual(tensors[name].ctypes.data - start, artifact.tensor_info(name).offset, "a copy")

    def test_arrays_outlive_artifact_and_mapping(self):
        artifact = self.open_one(makers.safetensors({"a": ("F32", [2, 3], F32_2x3)}))
        array = artifact.tensors()["a"]
        artifact.close()
        del artifact
        gc.collect()
        numpy.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])

    def test_scalars_empty_and_unaligned(self):
        artifact = self.open_one(
            makers.safetensors({"u": ("U8", [1], b"x"), "s": ("F32", [], F32_2x3[4:8]), "e": ("F16", [0, 7], b"")})
        )
        tensors = artifact.tensors()
        self.assertEqual((tensors["s"].shape, tensors["s"][()]), ((), 1.0))
        self.assertEqual((tensors["e"].shape, tensors["e"].flags.writeable), ((0, 7), False))

    def test_raw_gives_bits(self):
        data = {"b": ("BF16", [2, 1], b"\x80\x3f\0\xc0"), "f": ("F8_E5M2", [2], b"\x3c\x40"), "p": ("F4", [4], b"ab")}
        artifact = self.open_one(makers.safetensors(data))
        raw = artifact.tensors(raw=True)
        numpy.testing.assert_array_equal(raw["b"], numpy.array([[0x3F80], [0xC000]], "u2"))
        numpy.testing.assert_array_equal(raw["f"], numpy.array([0x3C, 0x40], "u1"))
        numpy.testing.assert_array_equal(raw["p"], numpy.array([97, 98], "u1"))
        with self.assertRaisesRegex(weighlock.Invalid, r"raw=True"):
            artifact.tensors()["p"]
        with mock.patch.dict(sys.modules, {"ml_dtypes": None}):
            for name in "bf":
                with self.assertRaisesRegex(weighlock.MissingDependency, r"ml_dtypes.*(\n.*)?raw=True"):
                    artifact.tensors()[name]

    @unittest.skipIf(ml_dtypes is None, "ml_dtypes is not installed")
    def test_ml_dtypes_values(self):
        kinds = {
            "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
            "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
        }  # fmt: skip
        wanted = {name: numpy.array([1, 2, 4], getattr(ml_dtypes, kind)) for name, kind in kinds.items()}
        artifact = self.open_one(makers.safetensors({n: (n, [3], array.tobytes()) for n, array in wanted.items()}))
        for name, array in wanted.items():
            with self.subTest(dtype=name):
                self.assertEqual(artifact.tensors()[name].dtype, array.dtype)
                numpy.testing.assert_array_equal(artifact.tensors()[name].astype("f4"), [1, 2, 4])

    def test_gguf_shapes_and_blocks(self):
        blocks = bytes(range(2 * 2 * 36))
        artifact = self.open_one(makers.gguf([("f", [3, 2], 0, F32_2x3), ("q", [64, 2, 2], 2, blocks)]), "m.gguf")
        tensors = artifact.tensors()
        numpy.testing.assert_array_equal(tensors["f"], [[0, 1, 2], [3, 4, 5]])
        self.assertEqual((tensors["q"].dtype, tensors["q"].shape), (numpy.uint8, (2, 2, 36)))
        self.assertEqual(tensors["q"].tobytes(), blocks)
        self.assertEqual(artifact.tensor_info("q").shape, (2, 2, 64))

    @unittest.skipIf(torch is None, "torch is not installed")
    def test_torch_shares_private_memory(self):
        artifact = self.open_one(
            makers.safetensors({"a": ("F32", [2, 3], F32_2x3), "b": ("BF16", [2], b"\x80\x3f\0\xc0")})
        )
        tensor = artifact.torch("a")
        self.assertEqual(tensor.tolist(), [[0, 1, 2], [3, 4, 5]])
        self.assertEqual(artifact.torch("b").tolist(), [1.0, -2.0])
        tensor[0, 0] = 9
        self.assertEqual(artifact.tensors()["a"][0, 0], 0, "a write stays in private memory")
        self.assertEqual(artifact.torch("a")[0, 0], 9, "one private mapping per file")


if __name__ == "__main__":
    unittest.main()
