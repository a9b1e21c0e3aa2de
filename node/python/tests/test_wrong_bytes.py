"""The client against a test server that sends errors and wrong bytes: clear errors, no hang, nothing left open."""

import json
import os
import socket
import struct
import subprocess
import sys
import unittest

from case import REF, Case, open_fds
from loader_server import LoaderServer, entry, frame, opened, receive_frame, send_with_fds

import weighlock


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
        ]
        changes += [{"files": [entry(path, 1)]} for path in ("", "/a", "../a", "a//b", "a/../b", "a\0", "a\\b", ".")]
        for change in changes:
            with self.subTest(change=change):
                self.fails(self.answers(frame({**good, **change})), weighlock.ProtocolError, "the daemon opened")

    def test_contracts_that_are_none(self):
        for contract in ([], None, "text"):
            with self.subTest(contract=contract), LoaderServer(self.root, contract=contract) as server:
                with weighlock.open(REF, server.path) as artifact:
                    with self.assertRaisesRegex(weighlock.ProtocolError, f"a contract of {REF} that is not a table"):
                        artifact.contract

    def test_another_digest_than_asked_for(self):
        with LoaderServer(script=self.answers(frame(opened([])))) as server:
            with self.assertRaisesRegex(weighlock.ProtocolError, "for t/m@sha256:eeee"):
                weighlock.open("t/m@sha256:" + "e" * 64, server.path)

    def test_a_shortened_digest_is_the_one_asked_for(self):
        with LoaderServer(script=self.answers(frame(opened([])))) as server:
            with weighlock.open("t/m@sha256:" + "d" * 8, server.path) as artifact:
                self.assertEqual(artifact.digest, "sha256:" + "d" * 64)
        with LoaderServer(script=self.answers(frame(opened([])))) as server:
            with self.assertRaisesRegex(weighlock.ProtocolError, "for t/m@sha256:dddddddde"):
                weighlock.open("t/m@sha256:" + "d" * 8 + "e", server.path)

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


if __name__ == "__main__":
    unittest.main()
