"""The client against a real daemon: every file and every tensor equal to the originals.

Runs when all three are set: WEIGHLOCK_TEST_SOCKET (loader socket), WEIGHLOCK_TEST_REF (an artifact) and
WEIGHLOCK_TEST_DIR (the directory it was added from). WEIGHLOCK_TEST_SECOND_SOCKET, the loader socket of another member
that holds nothing of it yet, lets the artifact be used there while it is on its way. Tensors are compared with what
the `safetensors` and `gguf` packages read, and BLAKE3 with the `blake3` package, where those are installed.
"""

import hashlib
import os
import time
import unittest
from pathlib import Path

import weighlock

SOCKET = os.environ.get("WEIGHLOCK_TEST_SOCKET")
REF = os.environ.get("WEIGHLOCK_TEST_REF")
ORIGINALS = os.environ.get("WEIGHLOCK_TEST_DIR")
SECOND = os.environ.get("WEIGHLOCK_TEST_SECOND_SOCKET")


def optional(name):
    try:
        return __import__(name)
    except ImportError:
        return None


blake3 = optional("blake3")


@unittest.skipUnless(
    SOCKET and REF and ORIGINALS,
    "not run: WEIGHLOCK_TEST_SOCKET, WEIGHLOCK_TEST_REF and WEIGHLOCK_TEST_DIR are not all set",
)
class Daemon(unittest.TestCase):
    def setUp(self):
        self.artifact = weighlock.open(REF, SOCKET)
        self.addCleanup(self.artifact.close)
        self.originals = Path(ORIGINALS)

    def paths_with(self, suffix):
        paths = [path for path in self.artifact.paths() if path.endswith(suffix)]
        if not paths:
            self.skipTest(f"not run: this artifact has no {suffix} file")
        return paths

    def test_hello(self):
        answer = weighlock.hello(SOCKET)
        self.assertEqual(answer["protocol"], 1)
        self.assertTrue(answer["version"])

    def test_every_file_is_equal(self):
        self.assertRegex(self.artifact.digest, "^sha256:[0-9a-f]{64}$")
        self.assertGreater(len(self.artifact), 0)
        for file in self.artifact.walk():
            with self.subTest(path=file.path):
                original = (self.originals / file.path).read_bytes()
                self.assertEqual(file.size, len(original))
                self.assertEqual(file.sha256, hashlib.sha256(original).hexdigest())
                self.assertTrue(file.read() == original, "read() differs")
                self.assertTrue(memoryview(file.mmap()) == memoryview(original), "mmap() differs")
                with file.open() as stream:
                    self.assertTrue(stream.read() == original, "open() differs")
                self.assertRegex(file.blake3, "^[0-9a-f]{64}$")
                if blake3 is not None:
                    self.assertEqual(file.blake3, blake3.blake3(original).hexdigest())

    def test_descriptors_cannot_write(self):
        file = self.artifact[self.artifact.paths()[0]]
        with self.assertRaises(OSError):
            os.pwrite(file.fileno(), b"x", 0)
        with self.assertRaises(OSError):
            os.ftruncate(file.fileno(), 0)

    def test_contract_agrees_with_the_headers(self):
        if not self.artifact.contract.get("tensors"):
            self.skipTest("not run: the contract of this artifact lists no tensors")
        layers = {layer["path"]: layer["tensors"] for layer in self.artifact.contract.get("tensors", [])}
        for path, tensors in layers.items():
            read = self.artifact.tensors(path)
            self.assertEqual(len(read), len(tensors))
            for tensor in tensors:
                info = read.info(tensor["name"])
                with self.subTest(path=path, name=info.name):
                    self.assertEqual(
                        (info.dtype, list(info.shape), info.offset, info.nbytes),
                        (tensor["dtype"], tensor["shape"], tensor["offset"], tensor["len"]),
                    )

    @unittest.skipUnless(optional("numpy") and optional("safetensors"), "not run: needs numpy and safetensors")
    def test_safetensors_are_equal(self):
        from safetensors import safe_open
        from safetensors.numpy import load_file

        for path in self.paths_with(".safetensors"):
            tensors = self.artifact.tensors(path)
            with safe_open(str(self.originals / path), "np") as original:
                self.assertEqual(set(tensors), set(original.keys()))
            wanted = load_file(str(self.originals / path))
            for name in tensors:
                with self.subTest(path=path, name=name):
                    self.assertEqual(tensors[name].shape, wanted[name].shape)
                    self.assertEqual(tensors[name].dtype.itemsize, wanted[name].dtype.itemsize)
                    self.assertTrue(tensors[name].tobytes() == wanted[name].tobytes(), "data differs")

    @unittest.skipUnless(optional("numpy") and optional("gguf"), "not run: needs numpy and gguf")
    def test_gguf_tensors_are_equal(self):
        from gguf import GGUFReader

        for path in self.paths_with(".gguf"):
            tensors = self.artifact.tensors(path, raw=True)
            wanted = {tensor.name: tensor for tensor in GGUFReader(str(self.originals / path)).tensors}
            self.assertEqual(set(tensors), set(wanted))
            for name, tensor in wanted.items():
                with self.subTest(path=path, name=name):
                    info = tensors.info(name)
                    self.assertEqual(info.dtype, tensor.tensor_type.name)
                    self.assertEqual(list(info.shape), [int(dim) for dim in reversed(tensor.shape)])
                    self.assertEqual(info.offset, int(tensor.data_offset))
                    self.assertTrue(tensors[name].tobytes() == tensor.data.tobytes(), "data differs")

    def test_unknown_references_and_paths_are_refused_in_words(self):
        with self.assertRaises(weighlock.Error) as caught:
            weighlock.open("nobody/nothing:0.0.1", SOCKET, timeout=60)
        self.assertIn(type(caught.exception), (weighlock.NotFound, weighlock.Unavailable))
        with self.assertRaises(weighlock.Invalid):
            weighlock.open("not a reference", SOCKET)
        with self.assertRaises(weighlock.Refused):
            self.artifact._session.fetch({"../../etc/passwd": 1})
        self.assertGreaterEqual(len(self.artifact[self.artifact.paths()[0]].read()), 0)

    def test_a_channel_is_watched(self):
        channel = REF.split("@")[0].rsplit(":", 1)[0] + ":production"
        with weighlock.watch(channel, SOCKET, timeout=60) as watching:
            head = next(watching)
        self.assertEqual(head.ref, channel)
        self.assertEqual(list(watching), [], "it has ended")
        if head.digest is None:
            self.assertEqual(head, (channel, None, None, None, False, None), "nothing was promoted")
        elif head.closed is None:
            with weighlock.open(channel, SOCKET) as artifact:
                self.assertEqual(artifact.digest, head.digest)
        with self.assertRaisesRegex(weighlock.Invalid, "is no channel"):
            weighlock.watch(REF, SOCKET)

    def test_mapping_outlives_the_artifact(self):
        path = max(self.artifact.paths(), key=lambda each: self.artifact[each].size)
        mapping = self.artifact[path].mmap()
        self.artifact.close()
        self.assertTrue(memoryview(mapping) == memoryview((self.originals / path).read_bytes()))


@unittest.skipUnless(
    SOCKET and REF and ORIGINALS and SECOND,
    "not run: WEIGHLOCK_TEST_SECOND_SOCKET is not set, or one of the others",
)
class SecondDaemon(unittest.TestCase):
    """One test: after it, everything is on that host."""

    def open(self):
        # Its daemon may have joined just now, and not know the name yet.
        deadline = time.monotonic() + 60
        while True:
            try:
                return weighlock.open(REF, SECOND, timeout=60, partial=True)
            except (weighlock.NotFound, weighlock.NotMember):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def test_it_is_used_while_it_is_on_its_way(self):
        originals = Path(ORIGINALS)
        with self.open() as artifact:
            self.assertFalse(artifact.complete, "that daemon was to hold nothing of it")
            with self.assertRaises(OSError):
                os.pwrite(artifact.files[artifact.paths()[-1]]._fd().number, b"x", 0)
            streamed = {name: tensor.tobytes() for name, tensor in artifact.stream(raw=True)}
            for path in artifact.paths():
                self.assertTrue(artifact[path].read() == (originals / path).read_bytes(), path)
            self.assertTrue(artifact.complete)
            self.assertEqual(set(streamed), set(artifact.tensor_info()))
            for name, data in streamed.items():
                info = artifact.tensor_info(name)
                with (originals / info.path).open("rb") as file:
                    file.seek(info.offset)
                    self.assertTrue(data == file.read(info.nbytes), f"{name} differs")
        with weighlock.stream(REF, SECOND, raw=True) as again:
            self.assertTrue(again.artifact.complete)
            self.assertEqual({name: tensor.tobytes() for name, tensor in again}, streamed)


if __name__ == "__main__":
    unittest.main()
