"""A daemon that is restarted under its loaders."""

import os
import socket
import threading
import time
from unittest import mock

import weighlock
from case import REF, Case, open_fds
from loader_server import LoaderServer
from weighlock import _socket


class Restarting(LoaderServer):
    """Serves a directory, and can drop all connections as a daemon does that ends."""

    def __init__(self, root):
        self.connections = []
        self.refuse_opens = 0
        super().__init__(root)

    def _talk(self, conn):
        self.connections.append(conn)
        super()._talk(conn)

    def _op_open(self, conn, request):
        if self.refuse_opens:
            self.refuse_opens -= 1
            raise OSError("ends in the middle of an open")
        name, _, digest = request["ref"].partition("@")
        if digest and digest == getattr(self, "digest", digest):
            request = {**request, "ref": name + ":1.0.0"}
        super()._op_open(conn, request)

    def drop(self):
        connections, self.connections = self.connections, []
        for conn in connections:
            try:
                conn.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.wait_for_leases(0)


class Restart(Case):
    def setUp(self):
        super().setUp()
        os.environ["WEIGHLOCK_CONNECT_PATIENCE"] = "20"
        self.put("a.txt", b"first")
        self.put("b.txt", b"second")

    def test_an_open_waits_for_a_daemon_that_is_away(self):
        with Restarting(self.root) as server:
            away = server.path + ".away"
            os.rename(server.path, away)
            threading.Timer(0.4, os.rename, (away, server.path)).start()
            with self.assertLogs("weighlock", "WARNING") as logged:
                with weighlock.open(REF, server.path) as artifact:
                    self.assertEqual(artifact["a.txt"].read(), b"first")
            self.assertEqual(len(logged.output), 1, "it says once that it waits")

    def test_an_open_that_is_cut_is_asked_again(self):
        with Restarting(self.root) as server:
            server.refuse_opens = 3
            with weighlock.open(REF, server.path) as artifact:
                self.assertEqual(artifact["b.txt"].read(), b"second")
            self.assertEqual([request["op"] for request in server.requests].count("open"), 4)

    def test_an_open_artifact_outlives_a_restart(self):
        with Restarting(self.root) as server:
            before = open_fds()
            with weighlock.open(REF, server.path) as artifact:
                mapped = artifact["a.txt"].mmap()
                server.drop()
                self.assertEqual(bytes(mapped), b"first", "a mapping needs nobody")
                self.assertEqual(artifact["b.txt"].read(), b"second", "a file that was not asked for before")
                last = [request for request in server.requests if request["op"] == "open"][-1]
                self.assertEqual(last["ref"], f"test/model@{artifact.digest}", "by digest: the same bytes")
                self.assertTrue(server.wait_for_leases(1), "it has a lease again")
                del mapped
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)

    def test_what_is_all_here_is_not_taken_half_after_a_restart(self):
        with Restarting(self.root) as server:
            with weighlock.open(REF, server.path, partial=True) as artifact:
                self.assertTrue(artifact.complete)
                server.drop()
                self.assertEqual(artifact["b.txt"].read(), b"second")
            opens = [request.get("partial", False) for request in server.requests if request["op"] == "open"]
            # Of a file that went meanwhile a partial open would give what is not there yet.
            self.assertEqual(opens, [True, False])

    def test_patience_ends(self):
        os.environ["WEIGHLOCK_CONNECT_PATIENCE"] = "0.3"
        began = time.monotonic()
        with self.assertRaises(weighlock.ConnectionError), self.assertLogs("weighlock"):
            weighlock.open(REF, self.root / "nowhere.sock")
        self.assertGreaterEqual(time.monotonic() - began, 0.2)
        with Restarting(self.root) as server:
            server.refuse_opens = 1 << 30
            with self.assertRaises(weighlock.ConnectionError):
                weighlock.open(REF, server.path)

    def test_what_waiting_does_not_help_fails_at_once(self):
        os.environ["WEIGHLOCK_CONNECT_PATIENCE"] = "600"
        os.environ["XDG_DATA_HOME"] = str(self.root / "none")
        with mock.patch.object(_socket, "candidates", lambda path=None: [str(self.root / "no" / "loader.sock")]):
            with self.assertRaises(weighlock.ConnectionError):
                weighlock.open(REF)
        with self.assertRaisesRegex(weighlock.ConnectionError, "too long"):
            weighlock.open(REF, "/" + "x" * 200)
        os.environ["WEIGHLOCK_CONNECT_PATIENCE"] = "soon"
        with self.assertRaisesRegex(weighlock.Invalid, "WEIGHLOCK_CONNECT_PATIENCE"):
            weighlock.open(REF, "/s")
