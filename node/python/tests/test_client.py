"""The client against a test server that speaks the loader protocol (not a daemon; see test_daemon.py for one)."""

import contextlib
import gc
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

import makers
from loader_server import LoaderServer, entry, frame, opened, receive_frame, send_with_fds

import weighlock
from weighlock import __main__ as command
from weighlock import _socket

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

REF = "test/model:1.0.0"
F32_2x3 = struct.pack("<6f", *range(6))


def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Case(unittest.TestCase):
    """A directory to serve, and a check that no descriptor is left open."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="weighlock-test-")
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        for name in ("WEIGHLOCK_SOCKET", "WEIGHLOCK_DATA_DIR", "XDG_DATA_HOME"):
            os.environ.pop(name, None)

    def put(self, path, data):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


class Files(Case):
    def test_lists_and_reads_files(self):
        self.put("config.json", b'{"hidden_size": 4}')
        self.put("sub/empty.txt", b"")
        with LoaderServer(self.root, contract={"version": 1}) as server:
            with weighlock.open(REF, socket=server.path) as artifact:
                self.assertEqual(artifact.ref, REF)
                self.assertEqual(artifact.digest, "sha256:" + "d" * 64)
                self.assertEqual(artifact.contract, {"version": 1})
                self.assertEqual(artifact.paths(), ["config.json", "sub/empty.txt"])
                self.assertEqual([r["op"] for r in server.requests], ["open"], "listing needs no descriptor")
                file = artifact["config.json"]
                self.assertEqual((file.path, file.size, file.kind), ("config.json", 18, "config"))
                self.assertEqual(hashlib.sha256(file.read()).hexdigest(), file.sha256)
                self.assertEqual(file.read(2, 6), b"hidden")
                self.assertEqual(file.read(15, 100), b" 4}")
                self.assertEqual(file.read(100), b"")
                self.assertEqual(artifact.json("config.json"), {"hidden_size": 4})
                self.assertEqual(artifact["sub/empty.txt"].read(), b"")
                self.assertEqual(artifact["sub/empty.txt"].mmap(), b"")
                self.assertEqual(artifact["sub/empty.txt"].open().read(), b"")
                self.assertIn("config.json", artifact)
                with self.assertRaises(TypeError):
                    artifact.files["x"] = file

    def test_missing_things_are_named(self):
        self.put("a.txt", b"no json")
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            with self.assertRaisesRegex(weighlock.NotFound, "no file 'b.txt'"):
                artifact["b.txt"]
            with self.assertRaises(KeyError):
                artifact["b.txt"]
            with self.assertRaisesRegex(weighlock.Invalid, "not JSON"):
                artifact.json("a.txt")
            with self.assertRaises(weighlock.Invalid):
                artifact["a.txt"].read(-1)
            with self.assertRaises(weighlock.Invalid):
                artifact.tensors("a.txt")

    def test_descriptor_is_read_only_and_not_inherited(self):
        self.put("a.txt", b"0123456789")
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            fd = artifact["a.txt"].fileno()
            self.assertEqual(fd, artifact["a.txt"].fileno())
            self.assertFalse(os.get_inheritable(fd))
            with self.assertRaises(OSError):
                os.write(fd, b"x")
            self.assertEqual(os.pread(fd, 3, 2), b"234")

    def test_file_objects_are_independent(self):
        self.put("a.txt", b"0123456789")
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            file = artifact["a.txt"]
            with file.open() as one, file.open() as two:
                self.assertEqual(one.read(4), b"0123")
                self.assertEqual(two.read(2), b"01")
                self.assertEqual(one.seek(-2, io.SEEK_END), 8)
                self.assertEqual(one.read(), b"89")
                self.assertEqual(two.read(1), b"2")
                with self.assertRaises(ValueError):
                    one.seek(-1)
            self.assertEqual(os.lseek(file.fileno(), 0, os.SEEK_CUR), 0, "the shared offset did not move")

    def test_mapping_is_read_only_cached_and_outlives_the_artifact(self):
        self.put("a.txt", b"0123456789")
        with LoaderServer(self.root) as server:
            with weighlock.open(REF, server.path) as artifact:
                file = artifact["a.txt"]
                mapping = file.mmap()
                self.assertIs(mapping, file.mmap())
                stream = file.open()
                with self.assertRaises(TypeError):
                    mapping[0] = 1
            self.assertEqual(mapping[2:5], b"234")
            self.assertEqual(stream.read(), b"0123456789")
            private = None
            with weighlock.open(REF, server.path) as artifact:
                private = artifact["a.txt"].private_mmap()
            private[0:1] = b"x"
            self.assertEqual((private[:3], mapping[:3]), (b"x12", b"012"))
        self.assertEqual((self.root / "a.txt").read_bytes(), b"0123456789")

    def test_closed_artifact_says_so_and_keeps_nothing_open(self):
        self.put("a.txt", b"0123456789")
        self.put("b.txt", b"")
        with LoaderServer(self.root) as server:
            self.assertTrue(server.wait_for_leases(0))
            before = open_fds()
            artifact = weighlock.open(REF, server.path)
            self.assertTrue(server.wait_for_leases(1))
            artifact["a.txt"].fileno()
            artifact["a.txt"].read()
            artifact.close()
            artifact.close()
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)
            with self.assertRaisesRegex(weighlock.Closed, "closed"):
                artifact["a.txt"].read()

    def test_lease_ends_when_the_last_reference_goes(self):
        self.put("a.txt", b"0123456789")
        with LoaderServer(self.root) as server:
            artifact = weighlock.open(REF, server.path)
            file = artifact["a.txt"]
            del artifact
            self.assertEqual(server.open_connections, 1)
            self.assertEqual(file.read(), b"0123456789", "a file keeps the lease")
            del file
            self.assertTrue(server.wait_for_leases(0))

    def test_300_files_come_in_batches(self):
        for at in range(300):
            self.put(f"f{at:03}", str(at).encode())
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            self.assertEqual(len(artifact), 300)
            before = open_fds()
            for at, file in enumerate(artifact.walk()):
                self.assertEqual(file.read(), str(at).encode())
            sizes = [len(r["paths"]) for r in server.requests if r["op"] == "fds"]
            self.assertEqual(sizes, [64, 64, 64, 64, 44])
            self.assertLessEqual(open_fds() - before, _socket.HELD_FDS_MAX)
            artifact["f299"].read()
            self.assertEqual(len(server.requests), 6, "a held descriptor is used again")
            artifact["f000"].read()
            self.assertEqual(server.requests[-1]["paths"], ["f000"], "one that was dropped is asked for again")

    def test_pinned_descriptors_survive_the_batches(self):
        for at in range(300):
            self.put(f"f{at:03}", str(at).encode())
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            fd = artifact["f000"].fileno()
            stream = artifact["f001"].open()
            for file in artifact.walk():
                file.read()
            self.assertEqual(os.pread(fd, 10, 0), b"0")
            self.assertEqual(stream.read(), b"1")

    def test_many_threads_share_an_artifact(self):
        for at in range(200):
            self.put(f"f{at:03}", str(at).encode() * 100)
        wrong = []
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:

            def read(step):
                for at in range(200):
                    at = at * step % 200
                    if artifact[f"f{at:03}"].read() != str(at).encode() * 100:
                        wrong.append(at)

            with mock.patch.object(_socket, "HELD_FDS_MAX", 8):
                threads = [threading.Thread(target=read, args=(step,)) for step in (1, 3, 7, 11, 13, 17)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        self.assertEqual(wrong, [])
        self.assertGreaterEqual(sum(r["op"] == "fds" for r in server.requests), 200)

    def test_a_forked_child_reads_what_is_there_but_asks_for_nothing(self):
        self.put("a.txt", b"0123456789")
        self.put("b.txt", b"other")
        with LoaderServer(self.root) as server, weighlock.open(REF, server.path) as artifact:
            mapping = artifact["a.txt"].mmap()
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    same = mapping[:] == artifact["a.txt"].read() == b"0123456789"
                    try:
                        artifact["b.txt"].read()
                    except weighlock.Closed as error:
                        status = 0 if same and "process" in error.message else 2
                    artifact.close()
                os._exit(status)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
            self.assertEqual(artifact["b.txt"].read(), b"other", "the child did not disturb the parent's socket")


class Finding(Case):
    def test_order_of_places(self):
        home = {"HOME": "/h"}
        with mock.patch.dict(os.environ, home):
            self.assertEqual(
                _socket.candidates(),
                ["/run/weighlock/loader.sock", "/h/.local/share/weighlock/run/loader.sock"],
            )
            os.environ["XDG_DATA_HOME"] = "/x"
            self.assertEqual(_socket.candidates()[1], "/x/weighlock/run/loader.sock")
            os.environ["WEIGHLOCK_DATA_DIR"] = "/d"
            self.assertEqual(_socket.candidates(), ["/d/run/loader.sock"])
            os.environ["WEIGHLOCK_SOCKET"] = "/s"
            self.assertEqual(_socket.candidates(), ["/s"])
            self.assertEqual(_socket.candidates(Path("/a")), ["/a"])

    def test_nothing_there_says_where_it_looked_and_what_to_do(self):
        os.environ["XDG_DATA_HOME"] = str(self.root)
        with self.assertRaises(weighlock.ConnectionError) as caught:
            weighlock.open(REF)
        text = str(caught.exception)
        self.assertIn("/run/weighlock/loader.sock", text)
        self.assertIn(f"{self.root}/weighlock/run/loader.sock (No such file or directory)", text)
        self.assertIn("weighlock up", text)
        self.assertIsInstance(caught.exception, OSError)
        with self.assertRaisesRegex(weighlock.ConnectionError, "too long"):
            weighlock.open(REF, "/" + "x" * 200)

    def test_environment_and_hello(self):
        with LoaderServer(self.root) as server:
            os.environ["WEIGHLOCK_SOCKET"] = server.path
            self.assertEqual(weighlock.hello()["protocol"], 1)
            self.assertEqual(weighlock.open(REF).paths(), [])


class Progress(Case):
    def test_progress_is_reported(self):
        events = [{"phase": "fetch", "done_bytes": n, "total_bytes": 9, "sources": 2} for n in (0, 4, 9)]
        heard = []
        with LoaderServer(self.root, progress=events) as server:
            weighlock.open(REF, server.path, progress=heard.append).close()
            weighlock.open(REF, server.path).close()
        self.assertEqual(heard, [weighlock.Progress("fetch", n, 9, 2) for n in (0, 4, 9)])

    def test_an_exception_gives_up(self):
        def stop(_):
            raise RuntimeError("enough")

        with LoaderServer(self.root, progress=[{"phase": "fetch"}]) as server:
            before = open_fds()
            with self.assertRaisesRegex(RuntimeError, "enough"):
                weighlock.open(REF, server.path, progress=stop)
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)


class WrongBytes(Case):
    """What a broken or foreign server sends: a clear error, no hang, nothing left open."""

    def fails(self, script, kind, pattern, use=lambda artifact: None, timeout=30.0):
        with LoaderServer(script=script) as server:
            before = open_fds()
            with self.assertRaisesRegex(kind, pattern):
                with weighlock.open(REF, server.path, timeout=timeout) as artifact:
                    use(artifact)
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before, "descriptors were leaked")

    def answers(self, *parts):
        def script(conn):
            receive_frame(conn)
            for part in parts:
                conn.sendall(part)

        return script

    def after_open(self, script, files=None):
        """Opens two files, `a` and `b` of 3 bytes, then answers the request for descriptors by `script`."""
        files = [entry("a", 3), entry("b", 3)] if files is None else files
        self.put("a", b"abc")

        def whole(conn):
            receive_frame(conn)
            conn.sendall(frame(opened(files)))
            receive_frame(conn)
            fd = os.open(self.root / "a", os.O_RDONLY)
            try:
                script(conn, fd)
            finally:
                os.close(fd)

        return whole

    def test_cut_short_frames(self):
        whole = frame(opened([entry("a", 3)]))
        for cut in (0, 1, 3, 4, 5, len(whole) - 1):
            with self.subTest(cut=cut):
                self.fails(self.answers(whole[:cut]), weighlock.ConnectionError, "closed the connection")

    def test_a_frame_in_crumbs_is_put_together(self):
        whole = frame(opened([entry("a", 3)]))
        with LoaderServer(script=self.answers(*[whole[at : at + 1] for at in range(len(whole))])) as server:
            with weighlock.open(REF, server.path, timeout=30) as artifact:
                self.assertEqual(artifact.paths(), ["a"])

    def test_frames_that_are_none(self):
        protocol = weighlock.ProtocolError
        self.fails(self.answers(struct.pack(">I", (16 << 20) + 1)), protocol, "over the limit of 16777216")
        self.fails(self.answers(b"HTTP/1.1 400 Bad Request\r\n"), protocol, "over the limit")
        for body in (b"", b"{", b"\xff", b"[]", b"{}", b'{"event":1}', b"[" * 100_000):
            with self.subTest(body=body[:20]):
                self.fails(self.answers(frame(body)), protocol, "not JSON|without an event")

    def test_the_largest_frame_is_taken(self):
        message = opened([entry("a", 3)])
        message["pad"] = ""
        message["pad"] = "x" * ((16 << 20) - len(json.dumps(message)))
        self.assertEqual(len(frame(message)), 4 + (16 << 20))
        with LoaderServer(script=self.answers(frame(message))) as server:
            self.assertEqual(weighlock.open(REF, server.path, timeout=60).paths(), ["a"])

    def test_opened_frames_that_are_not_to_be_trusted(self):
        good = opened([entry("a", 3)])
        changes = [
            {"digest": "sha256:xyz"},
            {"digest": None},
            {"files": None},
            {"files": [1]},
            {"files": [entry("a", -1)]},
            {"files": [entry("a", True)]},
            {"files": [{**entry("a", 1), "sha256": None}]},
            {"files": [entry("a", 1), entry("a", 1)]},
            {"contract": []},
        ]
        changes += [{"files": [entry(path, 1)]} for path in ("", "/a", "../a", "a//b", "a/../b", "a\0", "a\\b", ".")]
        for change in changes:
            with self.subTest(change=change):
                self.fails(self.answers(frame({**good, **change})), weighlock.ProtocolError, "the daemon opened")

    def test_another_digest_than_asked_for(self):
        with LoaderServer(script=self.answers(frame(opened([])))) as server:
            with self.assertRaisesRegex(weighlock.ProtocolError, "for t/m@sha256:eeee"):
                weighlock.open("t/m@sha256:" + "e" * 64, server.path)

    def test_silence_runs_into_the_timeout(self):
        def silent(conn):
            while conn.recv(1000):
                pass

        self.fails(silent, weighlock.TimeoutError, "said nothing for 0.05 seconds", timeout=0.05)

    def test_unknown_events_pass(self):
        parts = [frame({"event": "weather"}), frame({"event": "progress"}), frame(opened([]))]
        with LoaderServer(script=self.answers(*parts)) as server:
            self.assertEqual(len(weighlock.open(REF, server.path, timeout=30)), 0)

    def read_a(self, artifact):
        artifact["a"].read()

    def test_descriptors_of_a_frame_that_is_cut_short_are_closed(self):
        for keep in (1, 3, 4, 10):

            def script(conn, fd, keep=keep):
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
                conn.sendmsg([frame({"event": "fds", "paths": ["a"]})[:keep]], rights)

            with self.subTest(keep=keep):
                self.fails(self.after_open(script), weighlock.ConnectionError, "middle of a frame", self.read_a)

    def test_descriptors_that_were_not_asked_for_are_closed(self):
        wrong = [(["b"], 1), (["a"], 0), (["a"], 2), (["a", "a"], 2), ([], 1), (None, 1), ([1], 1), (["a"] * 100, 64)]
        for paths, count in wrong:

            def script(conn, fd, paths=paths, count=count):
                send_with_fds(conn, {"event": "fds", "paths": paths}, [fd] * count)

            with self.subTest(paths=paths and paths[:3], count=count):
                self.fails(self.after_open(script), weighlock.ProtocolError, "the daemon", self.read_a)

    def test_more_descriptors_than_a_frame_may_carry(self):
        def script(conn, fd):
            send_with_fds(conn, {"event": "fds", "paths": ["a"] * 65}, [fd] * 65)

        self.fails(self.after_open(script), weighlock.ProtocolError, "not all file descriptors", self.read_a)

    def test_descriptors_with_other_frames_are_closed(self):
        def script(conn, fd):
            send_with_fds(conn, {"event": "weather"}, [fd] * 3)
            send_with_fds(conn, {"event": "error", "code": "internal", "message": "sorry"}, [fd] * 3)
            receive_frame(conn)

        self.fails(self.after_open(script), weighlock.Internal, "sorry", self.read_a)

    def test_a_file_of_another_length_is_refused(self):
        def script(conn, fd):
            send_with_fds(conn, {"event": "fds", "paths": ["a"]}, [fd])

        for size in (2, 4, 1 << 40):
            with self.subTest(size=size):
                self.fails(
                    self.after_open(script, [entry("a", size)]), weighlock.ProtocolError, "manifest says", self.read_a
                )

    def test_an_answer_may_come_in_several_frames(self):
        def script(conn, fd):
            send_with_fds(conn, {"event": "fds", "paths": ["b"]}, [fd])
            send_with_fds(conn, {"event": "fds", "paths": ["a"]}, [fd])
            receive_frame(conn)

        with LoaderServer(script=self.after_open(script)) as server, weighlock.open(REF, server.path) as artifact:
            self.assertEqual([file.read() for file in artifact.walk()], [b"abc", b"abc"])

    def test_a_lost_daemon_leaves_what_is_there(self):
        def script(conn, fd):
            send_with_fds(conn, {"event": "fds", "paths": ["a"]}, [fd])

        with LoaderServer(script=self.after_open(script)) as server, weighlock.open(REF, server.path) as artifact:
            self.assertEqual(artifact["a"].read(), b"abc")
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(artifact["a"].read(), b"abc")
            for _ in range(2):
                with self.assertRaises(weighlock.ConnectionError):
                    artifact["b"].read()

    def test_out_of_descriptors_is_said_and_nothing_leaks(self):
        # In a process of its own, whose limit can be lowered.
        for at in range(64):
            self.put(f"f{at:02}", b"x")
        code = (
            "import os, resource, sys, weighlock\n"
            f"artifact = weighlock.open({REF!r}, sys.argv[1])\n"
            "before = len(os.listdir('/proc/self/fd'))\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, before + 20))\n"
            "try:\n    list(artifact.walk())\n"
            "except weighlock.ProtocolError as error:\n"
            "    assert 'ulimit -n' in error.hint, error\n"
            "    assert len(os.listdir('/proc/self/fd')) == before - 1, os.listdir('/proc/self/fd')\n"
            "    print('said')\n"
        )
        with LoaderServer(self.root) as server:
            path = os.pathsep.join(sys.path)
            done = subprocess.run(
                [sys.executable, "-c", code, server.path],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
            )
        self.assertEqual((done.stdout, done.stderr), ("said\n", ""))


class ErrorFrames(Case):
    def test_every_code_has_its_class_and_the_socket_stays_usable(self):
        codes = {
            "not_found": weighlock.NotFound,
            "not_member": weighlock.NotMember,
            "unavailable": weighlock.Unavailable,
            "invalid": weighlock.Invalid,
            "refused": weighlock.Refused,
            "internal": weighlock.Internal,
            "from_the_future": weighlock.Error,
        }
        self.put("a", b"abc")
        remaining = list(codes)

        def script(conn):
            receive_frame(conn)
            conn.sendall(frame(opened([entry("a", 3)])))
            for code in remaining:
                receive_frame(conn)
                conn.sendall(frame({"event": "error", "code": code, "message": f"m {code}", "hint": "h"}))
            receive_frame(conn)
            with open(self.root / "a", "rb") as file:
                send_with_fds(conn, {"event": "fds", "paths": ["a"]}, [file.fileno()])
            receive_frame(conn)

        with LoaderServer(script=script) as server, weighlock.open(REF, server.path, timeout=30) as artifact:
            for code, kind in codes.items():
                with self.assertRaises(weighlock.Error) as caught:
                    artifact["a"].read()
                error = caught.exception
                self.assertIs(type(error), kind)
                self.assertEqual((error.code, error.message, error.hint), (code, f"m {code}", "h"))
                self.assertEqual(str(error), f"m {code}\nhint: h")
            self.assertEqual(artifact["a"].read(), b"abc")

    def test_error_of_open_closes_the_socket(self):
        with LoaderServer(self.root) as server:
            with self.assertRaisesRegex(weighlock.NotFound, "no a/b:1\nhint: weighlock ls"):
                weighlock.open("a/b:1", server.path)
            self.assertTrue(server.wait_for_leases(0))
        with self.assertRaises(weighlock.Invalid):
            weighlock.open(7, server.path)


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
            self.assertEqual(run("a/b:1"), (1, "", "error: no a/b:1\nhint: weighlock ls\n"))


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
