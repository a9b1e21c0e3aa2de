"""The client against a test server that speaks the loader protocol (not a daemon; see test_daemon.py for one)."""

import contextlib
import hashlib
import io
import os
import signal
import sys
import threading
import time
import types
import unittest
from pathlib import Path
from unittest import mock

from case import REF, Case, open_fds
from loader_server import LoaderServer, entry, frame, opened, receive_frame

import weighlock
from weighlock import _socket


class Files(Case):
    def test_threads_that_ask_at_once_share_one_number(self):
        self.put("a", b"abc")
        for _ in range(20):
            with LoaderServer(self.root) as server, weighlock.open(REF, socket=server.path) as artifact:
                start, numbers = threading.Barrier(8), []

                def first():
                    start.wait()
                    numbers.append(artifact["a"].fileno())

                threads = [threading.Thread(target=first) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                self.assertEqual([os.pread(number, 3, 0) for number in numbers], [b"abc"] * 8)
                self.assertEqual(len(set(numbers)), 1)

    def test_lists_and_reads_files(self):
        self.put("config.json", b'{"hidden_size": 4}')
        self.put("sub/empty.txt", b"")
        with LoaderServer(self.root, contract={"version": 1}) as server:
            with weighlock.open(REF, socket=server.path) as artifact:
                self.assertEqual(artifact.ref, REF)
                self.assertEqual(artifact.digest, "sha256:" + "d" * 64)
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

    def test_the_contract_is_asked_for_when_it_is_looked_at(self):
        with LoaderServer(self.root, contract={"version": 1}) as server:
            with weighlock.open(REF, socket=server.path) as artifact:
                self.assertEqual([r.get("contract") for r in server.requests], [False])
                self.assertEqual((artifact.contract, artifact.contract), ({"version": 1}, {"version": 1}))
                self.assertEqual([r["op"] for r in server.requests], ["open", "contract"], "it is kept")
            self.assertEqual(artifact.contract, {"version": 1}, "also when it is closed")
            with weighlock.open(REF, socket=server.path) as artifact:
                pass
            with self.assertRaises(weighlock.Closed):
                artifact.contract

    def test_a_signal_handler_may_close_it_and_do_nothing_else_with_it(self):
        errors = []

        def never(conn):
            receive_frame(conn)
            conn.sendall(frame(opened([entry("a", 3)])))
            while conn.recv(1000):
                pass

        def handler(*_):
            try:
                artifact["a"].read()
            except weighlock.Error as error:
                errors.append(error)
            artifact.close()

        with LoaderServer(script=never) as server, weighlock.open(REF, server.path) as artifact:
            before = signal.signal(signal.SIGALRM, handler)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with self.assertRaises(weighlock.Error):
                    artifact["a"].read()
            finally:
                signal.signal(signal.SIGALRM, before)
        self.assertIsInstance(errors[0], weighlock.Invalid)

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
            # The test server is in this process too: its own descriptors go a moment after they were sent.
            until = time.monotonic() + 10
            while open_fds() - before > _socket.HELD_FDS_MAX and time.monotonic() < until:
                time.sleep(0.01)
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

    def test_says_what_it_is_for_the_audit_log(self):
        # Named as what is loaded, without loading anything.
        runtimes = {name: types.ModuleType(name) for name in ("torch", "transformers", "vllm")}
        runtimes["vllm"].__version__ = "0.6.3"
        with LoaderServer(self.root) as server, mock.patch.dict(sys.modules, runtimes):
            weighlock.open(REF, server.path).close()
            os.environ["WEIGHLOCK_CLIENT"] = "trainer 7 " + "x" * 1000
            weighlock.open(REF, server.path).close()
            weighlock.hello(server.path)
        own = f"weighlock-python {weighlock.__version__} "
        self.assertEqual(server.requests[0]["client"], own + "vllm 0.6.3 transformers")
        self.assertTrue(server.requests[1]["client"].startswith(own + "trainer 7 x"))
        self.assertEqual(len(server.requests[1]["client"]), 200)
        self.assertEqual(server.requests[2]["client"], server.requests[1]["client"])


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


if __name__ == "__main__":
    unittest.main()
