"""Channels against a test server that tells their heads (not a daemon; see test_daemon.py for one)."""

import os
import threading
import time
import unittest
from unittest import mock

from case import Case, open_fds
from loader_server import LoaderServer, frame, receive_frame

import weighlock
from weighlock import _watch

CHANNEL = "test/model:production"


def digest(n):
    return "sha256:" + f"{n:064x}"


def head(n, **more):
    return {
        "event": "head",
        "ref": CHANNEL,
        "digest": None if n is None else digest(n),
        "statement": None if n is None else digest(n + 1000),
        "since": None if n is None else 1_700_000_000 + n,
        "rolled_back": False,
        **more,
    }


def telling(*frames, wait=True):
    """Tells these, then nothing more until the loader hangs up (or hangs up itself)."""

    def script(conn):
        request = receive_frame(conn)
        assert request == {"op": "watch", "ref": CHANNEL}, request
        for each in frames:
            conn.sendall(frame(each))
        if wait:
            receive_frame(conn)

    return script


class Heads(Case):
    def test_it_tells_the_head_and_each_move(self):
        why = "it was rolled back at 2026-03-03T09:00:00Z"
        moves = [head(None), head(1), head(2), head(2, closed=why), head(1, rolled_back=True), head(None)]
        with LoaderServer(script=telling(*moves)) as server:
            before = open_fds()
            with weighlock.watch(CHANNEL, server.path) as watching:
                told = [next(watching) for _ in moves]
            self.assertEqual([each.digest for each in told], [None, *map(digest, (1, 2, 2, 1)), None])
            self.assertEqual(told[1], (CHANNEL, digest(1), digest(1001), 1_700_000_001, False, None))
            self.assertEqual([each.closed for each in told], [None, None, None, why, None, None])
            self.assertEqual([each.rolled_back for each in told], [False, False, False, False, True, False])
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)

    def test_what_a_newer_daemon_says_passes_by(self):
        moves = [{"event": "weather"}, head(1, mood="good"), {"event": "weather"}, head(2)]
        with LoaderServer(script=telling(*moves)) as server, weighlock.watch(CHANNEL, server.path) as watching:
            self.assertEqual([next(watching).digest for _ in range(2)], [digest(1), digest(2)])

    def test_what_is_no_channel_is_an_error_of_the_call(self):
        no = {"event": "error", "code": "invalid", "message": "it is no channel", "hint": "watch a stage"}
        with LoaderServer(script=telling(no)) as server:
            before = open_fds()
            with self.assertRaisesRegex(weighlock.Invalid, "no channel"):
                weighlock.watch(CHANNEL, server.path)
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)
        with self.assertRaises(weighlock.Invalid):
            weighlock.watch(7)
        with self.assertRaises(weighlock.ConnectionError):
            weighlock.watch(CHANNEL, str(self.root / "nobody.sock"))

    def test_a_silent_daemon_is_given_up_and_a_silent_channel_is_not(self):
        with LoaderServer(script=telling()) as server, self.assertRaises(weighlock.TimeoutError):
            weighlock.watch(CHANNEL, server.path, timeout=0.05)
        later = threading.Event()

        def script(conn):
            receive_frame(conn)
            conn.sendall(frame(head(1)))
            later.wait(30)
            conn.sendall(frame(head(2)))
            receive_frame(conn)

        with LoaderServer(script=script) as server:
            with weighlock.watch(CHANNEL, server.path, timeout=0.2) as watching:
                next(watching)
                threading.Timer(0.5, later.set).start()
                self.assertEqual(next(watching).digest, digest(2))

    def test_wrong_frames_end_it(self):
        for wrong in [
            head(1, ref=None),
            head(1, digest="sha256:1"),
            head(1, digest=7),
            head(1, since="now"),
            head(1, since=True),
            head(1, statement=[]),
            head(1, closed={}),
        ]:
            with self.subTest(wrong=wrong), LoaderServer(script=telling(head(5), wrong)) as server:
                watching = weighlock.watch(CHANNEL, server.path)
                next(watching)
                with self.assertRaises(weighlock.ProtocolError):
                    next(watching)
                self.assertEqual(list(watching), [], "it has ended")
                self.assertTrue(server.wait_for_leases(0))


class Daemons(Case):
    """That go away."""

    def setUp(self):
        super().setUp()
        quick = mock.patch.object(_watch, "RETRY_PAUSE_SECONDS", 0.01)
        quick.start()
        self.addCleanup(quick.stop)

    def turns(self, *scripts):
        """A server that takes the next of these for each connection."""
        left = iter(scripts)
        return LoaderServer(script=lambda conn: next(left)(conn))

    def test_one_that_is_back_tells_what_moved_and_nothing_twice(self):
        stopping = {"event": "error", "code": "unavailable", "message": "the daemon is stopping"}
        with self.turns(
            telling(head(1), wait=False),
            telling(head(1), stopping),
            telling(head(1), wait=False),
            telling(head(3, rolled_back=True)),
        ) as server:
            with self.assertLogs("weighlock", "WARNING") as logged, weighlock.watch(CHANNEL, server.path) as watching:
                self.assertEqual([next(watching).digest for _ in range(2)], [digest(1), digest(3)])
            self.assertIn("looks for it again", logged.output[0])

    def test_patience_ends(self):
        for patience in (0, 0.05):
            with self.subTest(patience=patience):
                with LoaderServer(script=telling(head(1), wait=False)) as server:
                    watching = weighlock.watch(CHANNEL, server.path, patience=patience)
                    next(watching)
                    os.unlink(server.path)
                    with self.assertLogs("weighlock"), self.assertRaises(weighlock.ConnectionError):
                        next(watching)
                    self.assertEqual(list(watching), [])

    def test_an_error_that_time_does_not_mend_is_raised(self):
        no = {"event": "error", "code": "internal", "message": "the store failed"}
        with self.turns(telling(head(1), no)) as server:
            watching = weighlock.watch(CHANNEL, server.path)
            next(watching)
            with self.assertRaises(weighlock.Internal):
                next(watching)


class Ends(Case):
    def wait_in_thread(self, watching):
        told = []
        thread = threading.Thread(target=lambda: told.extend(watching))
        thread.start()
        return thread, told

    def test_another_thread_closes_it(self):
        with LoaderServer(script=telling(head(1))) as server:
            before = open_fds()
            watching = weighlock.watch(CHANNEL, server.path)
            thread, told = self.wait_in_thread(watching)
            while not told:
                time.sleep(0.001)
            watching.close()
            thread.join(30)
            self.assertFalse(thread.is_alive())
            self.assertEqual([each.digest for each in told], [digest(1)])
            watching.close()
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)

    def test_it_is_closed_while_no_daemon_is_there(self):
        with LoaderServer(script=telling(head(1), wait=False)) as server:
            watching = weighlock.watch(CHANNEL, server.path)
            with self.assertLogs("weighlock"):
                os.unlink(server.path)
                thread, _ = self.wait_in_thread(watching)
                while watching._last is None or not watching._connection.closed:
                    time.sleep(0.001)
                watching.close()
                thread.join(30)
            self.assertFalse(thread.is_alive())

    def test_forgotten_it_is_closed(self):
        with LoaderServer(script=telling(head(1))) as server:
            before = open_fds()
            for each in weighlock.watch(CHANNEL, server.path):
                self.assertEqual(each.digest, digest(1))
                break
            self.assertTrue(server.wait_for_leases(0))
            self.assertEqual(open_fds(), before)

    def test_a_child_has_none_of_it(self):
        with LoaderServer(script=telling(head(1), head(2))) as server:
            watching = weighlock.watch(CHANNEL, server.path)
            next(watching)
            child = os.fork()
            if child == 0:
                try:
                    next(watching)
                except weighlock.Closed:
                    watching.close()
                    os._exit(7)
                os._exit(1)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7)
            self.assertEqual(next(watching).digest, digest(2), "the parent's goes on")
            watching.close()


if __name__ == "__main__":
    unittest.main()
