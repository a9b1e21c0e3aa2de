"""Files that are still on their way, against a test server that lets bytes land when the test says so."""

import contextlib
import hashlib
import struct
import threading
import unittest

import makers
from case import REF, Case, open_fds
from landing_server import LandingServer
from loader_server import LoaderServer, entry, frame, opened, receive_frame

import weighlock
from weighlock import _gguf, _safetensors
from weighlock._ranges import Ranges
from weighlock._tensors import HeaderIncomplete


def noise(seed, count):
    return hashlib.shake_128(str(seed).encode()).digest(count)


def weights(*names, size=100, seed=""):
    return makers.safetensors({name: ("U8", [size], noise(seed + name, size)) for name in names})


def body(tensor):
    """The bytes of what a stream yields, with and without NumPy."""
    return tensor.tobytes()


class Streaming(Case):
    @contextlib.contextmanager
    def streaming(self, files, **options):
        with LandingServer(self.root, files) as server:
            with weighlock.stream(REF, server.path, timeout=60, **options) as stream:
                yield server, stream
            self.assertTrue(server.wait_for_leases(0), "a lease outlived the stream")

    def place(self, data, path, name):
        info = next(info for info in _safetensors.parse(data, path) if info.name == name)
        return info.offset, info.offset + info.nbytes

    def test_tensors_come_in_the_order_in_which_they_land(self):
        data = weights("a", "b", "c", "d")
        with self.streaming({"m.safetensors": data}) as (server, stream):
            self.assertFalse(stream.artifact.complete)
            start = self.place(data, "m", "a")[0]
            c = self.place(data, "m", "c")
            # A tensor without its header, then half a header, are nothing yet.
            server.land("m.safetensors", *c)
            server.land("m.safetensors", 0, 9)
            server.land("m.safetensors", 9, start)
            name, tensor = next(stream)
            self.assertEqual((name, body(tensor)), ("c", noise("c", 100)))
            # Half a tensor is none; one and a half are one.
            d, a = self.place(data, "m", "d"), self.place(data, "m", "a")
            server.land("m.safetensors", d[0], d[0] + 50)
            server.land("m.safetensors", a[0], a[1] + 50)
            self.assertEqual(next(stream)[0], "a")
            server.land("m.safetensors", d[0] + 50, d[1])
            self.assertEqual(next(stream)[0], "d")
            server.land("m.safetensors", a[1] + 50, d[0])
            name, tensor = next(stream)
            self.assertEqual((name, body(tensor)), ("b", noise("b", 100)))
            self.assertEqual(list(stream), [], "each once")
            self.assertTrue(stream.artifact.complete)
            self.assertEqual(list(stream), [], "and none again")

    def test_several_files_and_formats_and_tensors_of_no_bytes(self):
        rows = struct.pack("<8f", *range(8))
        files = {
            "1.safetensors": makers.safetensors({"x": ("F32", [2, 4], rows), "none": ("F32", [0, 4], b"")}),
            "2.gguf": makers.gguf([("y", [4, 2], 0, rows), ("z", [32], 2, noise("z", 18))], keys=[
                ("tokens", 9, struct.pack("<IQ", 8, 900) + makers.gguf_text("token") * 900)]),
            "notes.txt": b"no tensors here",
        }  # fmt: skip
        seen = []
        with self.streaming(files, progress=seen.append) as (server, stream):
            gguf = files["2.gguf"]
            for at in range(0, len(gguf), 1000):
                server.land("2.gguf", at, min(len(gguf), at + 1000))
            server.land("1.safetensors")
            got = {name: body(tensor) for name, tensor in stream}
            self.assertEqual(got, {"x": rows, "none": b"", "y": rows, "z": noise("z", 18)})
            self.assertTrue(any(step.done_bytes for step in seen), "progress is told")
            self.assertFalse(stream.artifact.complete, "the notes are not here")
            reads = []
            reader = threading.Thread(target=lambda: reads.append(stream.artifact["notes.txt"].read()))
            reader.start()
            self.assertTrue(server.wait_for_want("notes.txt"))
            server.land("notes.txt")
            reader.join()
            self.assertEqual(reads, [b"no tensors here"])

    def test_what_is_here_streams_without_a_connection_of_its_own(self):
        with self.streaming({}) as (_, stream):
            self.assertEqual(list(stream), [])
        data = weights("a", "b")
        with LandingServer(self.root, {"m.safetensors": data}) as server:
            server.land("m.safetensors")
            for partial in (True, False):
                with weighlock.open(REF, server.path, partial=partial) as artifact:
                    self.assertTrue(artifact.complete)
                    artifact.wait()
                    got = [(name, body(tensor)) for name, tensor in artifact.stream()]
                    self.assertEqual(got, [("a", noise("a", 100)), ("b", noise("b", 100))])
                    self.assertTrue(server.wait_for_leases(1), "one connection, and those before it are gone")
            self.assertNotIn("wait", [request["op"] for request in server.requests])

    def test_a_tensor_by_name_waits_and_nobody_waits_behind_it(self):
        files = {"m.safetensors": weights("a", "b"), "config.json": b'{"x": 1}'}
        with LandingServer(self.root, files) as server, weighlock.open(REF, server.path, partial=True) as artifact:
            data = files["m.safetensors"]
            got = {}
            ask = threading.Thread(target=lambda: got.update(b=bytes(artifact.tensor_bytes("b"))))
            ask.start()
            self.assertTrue(server.wait_for_want("m.safetensors"))
            # The header is waited for, on a connection of its own: this thread is served.
            server.land("config.json")
            self.assertEqual(artifact.json("config.json"), {"x": 1})
            server.land("m.safetensors", 0, len(data) - 200)
            server.land("m.safetensors", len(data) - 100, len(data))
            # The file is smaller than the part that is waited for first, so its header needs all of it.
            server.land("m.safetensors", len(data) - 200, len(data) - 100)
            ask.join()
            self.assertEqual(got, {"b": noise("b", 100)})
            self.assertEqual(bytes(artifact["m.safetensors"].mmap()), data)
            self.assertTrue(artifact.complete)
            opens = [request.get("contract", True) for request in server.requests if request["op"] == "open"]
            self.assertEqual(set(opens), {False}, "nor do further connections need the contract")
            before = len(server.requests)
            artifact.wait("m.safetensors", 5, 10)
            artifact["m.safetensors"].wait()
            self.assertEqual(len(server.requests), before, "what is known to be here is not asked for again")
            for start, end in [(-1, 2), (3, 2), (0, len(data) + 1)]:
                with self.assertRaises(weighlock.Invalid):
                    artifact.wait("m.safetensors", start, end)

    def test_a_large_header_is_waited_for_in_steps(self):
        names = [f"model.layers.{number}.weight" for number in range(3000)]
        data = weights(*names, size=8)
        with LandingServer(self.root, {"m.safetensors": data}) as server:
            server.land("m.safetensors", 0, len(data) - 8)
            with weighlock.open(REF, server.path, partial=True) as artifact:
                self.assertEqual(len(artifact.tensor_info()), 3000)
                asked = [end for _, ranges in server.wants for _, end in ranges]
                self.assertTrue(all(end < len(data) for end in asked), "more than the header was waited for")
                self.assertLess(len(asked), 5)
                self.assertEqual(bytes(artifact.tensor_bytes(names[7])), noise(names[7], 8))
                server.land("m.safetensors", len(data) - 8)
                self.assertEqual(bytes(artifact.tensor_bytes(names[-1])), noise(names[-1], 8))

    def test_an_error_ends_the_wait_and_it_may_be_asked_again(self):
        data = weights("a")
        with LandingServer(self.root, {"m.safetensors": data}) as server:
            with weighlock.open(REF, server.path, partial=True) as artifact:
                for use in (lambda: next(artifact.stream()), lambda: artifact["m.safetensors"].read(0, 1)):
                    failing = threading.Timer(0.05, server.fail, ["nobody has it"])
                    failing.start()
                    with self.assertRaisesRegex(weighlock.Unavailable, "nobody has it"):
                        # Until the failure falls into the wait.
                        while True:
                            use()
                    failing.join()
                server.land("m.safetensors")
                self.assertEqual([name for name, _ in artifact.stream()], ["a"])
                self.assertEqual(artifact["m.safetensors"].read(), data)

    def test_another_file_in_its_place_is_mapped_anew(self):
        data = weights("a", "b", "c")
        with self.streaming({"m.safetensors": data}) as (server, stream):
            a, b = self.place(data, "m", "a"), self.place(data, "m", "b")
            server.land("m.safetensors", 0, a[1])
            first = next(stream)[1]
            server.replace("m.safetensors")
            server.land("m.safetensors", *b)
            name, second = next(stream)
            self.assertEqual((name, body(second)), ("b", noise("b", 100)), "read from the new file")
            self.assertEqual(body(first), noise("a", 100), "what was yielded stays")
            server.land("m.safetensors")
            self.assertEqual([name for name, _ in stream], ["c"])
            self.assertEqual(stream.artifact["m.safetensors"].read(), data)

    def test_private_memory_is_of_the_file_that_bytes_land_in(self):
        data = weights("a", "b")
        with self.streaming({"m.safetensors": data}) as (server, stream):
            a, b = self.place(data, "m", "a"), self.place(data, "m", "b")
            server.land("m.safetensors", 0, a[1])
            next(stream)
            first = stream.artifact._private_map("m.safetensors")
            self.assertIs(stream.artifact._private_map("m.safetensors"), first)
            server.replace("m.safetensors")
            server.land("m.safetensors", *b)
            next(stream)
            second = stream.artifact._private_map("m.safetensors")
            self.assertEqual(second[b[0] : b[1]], data[b[0] : b[1]])
            self.assertIsNot(second, first)
            server.land("m.safetensors")

    def test_who_stops_early_leaves_nothing_open(self):
        data = weights("a", "b")
        with LandingServer(self.root, {"m.safetensors": data}) as server:
            before = open_fds()
            server.land("m.safetensors", 0, len(data) - 1)
            for name, _tensor in weighlock.stream(REF, server.path):
                self.assertEqual(name, "a")
                break
            del _tensor
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)

    def test_two_files_with_one_name_are_an_error(self):
        files = {"1.safetensors": weights("a"), "2.safetensors": weights("a", seed="other")}
        with self.streaming(files) as (server, stream):
            server.land("1.safetensors")
            self.assertEqual(next(stream)[0], "a")
            server.land("2.safetensors")
            with self.assertRaisesRegex(weighlock.Invalid, "both in"):
                next(stream)
            self.assertEqual([name for name, _ in stream.artifact.stream("2.safetensors")], ["a"])
            with self.assertRaises(weighlock.NotFound):
                stream.artifact.stream("3.safetensors")

    def test_a_bad_header_is_an_error(self):
        with self.streaming({"m.safetensors": makers.safetensors({}, length=1 << 60)}) as (server, stream):
            server.land("m.safetensors", 0, 8)
            with self.assertRaises(weighlock.FormatError):
                next(stream)


class WrongFrames(Case):
    """What a broken daemon may say of what is ready."""

    def fails(self, frames, pattern, kind=weighlock.ProtocolError):
        def script(conn):
            request = receive_frame(conn)
            conn.sendall(frame({**opened([entry("m.safetensors", 100)]), "complete": False}))
            request = receive_frame(conn)
            if request and request["op"] in ("follow", "wait"):
                for each in frames:
                    conn.sendall(frame(each))
                receive_frame(conn)

        with LoaderServer(script=script) as server:
            before = open_fds()
            with self.assertRaisesRegex(kind, pattern):
                with weighlock.stream(REF, server.path, timeout=30) as stream:
                    next(stream)
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before, "descriptors were leaked")

    def test_absurd_ranges(self):
        good = {"event": "ranges", "path": "m.safetensors", "inode": 7}
        absurd = [None, 7, {}, [7], [[]], [[0]], [[0, 1, 2]], [[0, 101]], [[5, 5]], [[6, 5]], [[-1, 5]], [[0.0, 1]],
                  [["0", "1"]], [[True, 5]], [[0, 1 << 70]]]  # fmt: skip
        for ready in absurd:
            with self.subTest(ready=ready):
                self.fails([{**good, "ready": ready}], "not inside its 100 bytes")
        for inode in (None, "7", -1, True, 1.5):
            with self.subTest(inode=inode):
                self.fails([{**good, "inode": inode, "ready": [[0, 1]]}], "not in which file")
        self.fails([{**good, "path": "other", "ready": [[0, 1]]}], "was not asked for")
        self.fails([{"event": "ranges"}], "was not asked for")

    def test_an_end_before_everything_was_told(self):
        self.fails([{"event": "complete"}], "not that all of m.safetensors is")
        error = {"event": "error", "code": "unavailable", "message": "the disk is full"}
        self.fails([error], "the disk is full", weighlock.Unavailable)


class Parts(unittest.TestCase):
    def test_ranges_agree_with_a_set_of_numbers(self):
        for seed in range(200):
            ranges, model = Ranges(), set()
            numbers = iter(noise(seed, 200))
            for start, end in zip(numbers, numbers):
                start, end = start % 64, end % 64
                ranges.add(start, end)
                model |= set(range(start, end))
            pairs = list(ranges)
            self.assertEqual({at for start, end in pairs for at in range(start, end)}, model)
            self.assertTrue(all(one[1] < two[0] for one, two in zip(pairs, pairs[1:])), pairs)
            self.assertEqual(ranges.prefix(), next(at for at in range(65) if at not in model))
            for start in range(0, 64, 7):
                for end in range(0, 64, 5):
                    self.assertEqual(ranges.covers(start, end), set(range(start, end)) <= model)

    def test_headers_say_how_much_they_need(self):
        tokens = struct.pack("<IQ", 8, 40) + makers.gguf_text("token") * 40
        gguf = makers.gguf([("y", [4], 0, b"x" * 16)], keys=[("tokens", 9, tokens)])
        for parse, data in [(_gguf.parse, gguf), (_safetensors.parse, weights("a", "b"))]:
            whole = parse(data, "m")
            ready, steps = 0, 0
            while True:
                try:
                    # What is not ready reads as zeros.
                    self.assertEqual(parse(data[:ready] + bytes(len(data) - ready), "m", ready), whole)
                    break
                except HeaderIncomplete as stop:
                    self.assertGreater(stop.need, ready)
                    self.assertLessEqual(stop.need, len(data))
                    ready, steps = stop.need, steps + 1
            self.assertGreater(steps, 1)
            self.assertLess(ready, len(data))


if __name__ == "__main__":
    unittest.main()
