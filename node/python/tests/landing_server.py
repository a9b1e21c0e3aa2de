"""A loader socket for testing the client alone with files that are still on their way: the test says what lands when.
Like loader_server it is no daemon and proves nothing."""

import contextlib
import os
import socket
import threading

from loader_server import LoaderServer, entry, frame, opened

DIGEST = "sha256:" + "d" * 64


class LandingServer(LoaderServer):
    """Serves `files` (path -> bytes) from `root`, where they are of full length and empty until `land` is called."""

    def __init__(self, root, files):
        self.files = files
        self.landed = {path: [] for path in files}
        self.changes = threading.Condition()
        self.failure = None
        self.wants = []
        for path in files:
            self._blank(root / path, len(files[path]))
        super().__init__(root)

    def land(self, path, start=0, end=None):
        """These bytes of the original are ready."""
        data = self.files[path]
        end = len(data) if end is None else end
        with self.changes:
            with open(self.root / path, "r+b") as file:
                file.seek(start)
                file.write(data[start:end])
            self.landed[path].append([start, end])
            self.changes.notify_all()

    def replace(self, path):
        """Another file takes the place of this one, and nothing of it has landed."""
        with self.changes:
            self._blank(self.root / (path + ".new"), len(self.files[path]))
            os.rename(self.root / (path + ".new"), self.root / path)
            self.landed[path] = []
            self.changes.notify_all()

    def fail(self, message):
        """Everyone who waits gets an error; later requests wait again."""
        with self.changes:
            self.failure = {"event": "error", "code": "unavailable", "message": message, "hint": "try again"}
            self.changes.notify_all()

    def wait_for_want(self, path):
        """Until somebody waits for bytes of `path`."""
        with self.changes:
            return self.changes.wait_for(lambda: any(want == path for want, _ in self.wants), 30)

    def _blank(self, path, size):
        with open(path, "wb") as file:
            file.truncate(size)

    def _inode(self, path):
        return os.stat(self.root / path).st_ino

    def _has(self, path, start, end):
        held = bytearray(len(self.files[path]))
        for one, two in self.landed[path]:
            held[one:two] = b"\1" * (two - one)
        return all(held[start:end])

    def _whole(self, path):
        return self._has(path, 0, len(self.files[path]))

    def _op_open(self, conn, request):
        if request["ref"] not in ("test/model:1.0.0", "test/model@" + DIGEST):
            return super()._op_open(conn, request)
        with self.changes:
            message = opened([entry(path, len(data), "weights") for path, data in self.files.items()])
            message["incomplete"] = [path for path in self.files if not self._whole(path)]
            message["complete"] = not message["incomplete"]
        assert request.get("partial") or message["complete"]
        conn.sendall(frame(message))

    def _op_wait(self, conn, request):
        path = request["path"]
        with self.changes:
            self.wants.append((path, request["ranges"]))
            self.changes.notify_all()
            conn.sendall(frame({"event": "progress", "phase": "fetch", "done_bytes": 1, "total_bytes": 2}))
            ready = self._until(conn, lambda: all(self._has(path, *each) for each in request["ranges"]))
            conn.sendall(frame(ready or {"event": "ready", "path": path, "inode": self._inode(path)}))

    def _op_follow(self, conn, request):
        told = {path: (None, 0) for path in request["paths"]}
        with self.changes:
            while True:
                for path in told:
                    inode, count = told[path]
                    if inode != self._inode(path):
                        inode, count = self._inode(path), 0
                    new = self.landed[path][count:]
                    told[path] = (inode, count + len(new))
                    if new:
                        conn.sendall(frame({"event": "ranges", "path": path, "inode": inode, "ready": new}))
                done = sum(end - start for path in told for start, end in self.landed[path])
                conn.sendall(frame({"event": "progress", "phase": "fetch", "done_bytes": done, "total_bytes": 99}))
                if all(self._whole(path) for path in told):
                    return conn.sendall(frame({"event": "complete"}))
                seen = {path: (self._inode(path), len(self.landed[path])) for path in told}
                moved = self._until(
                    conn, lambda seen=seen: seen != {path: (self._inode(path), len(self.landed[path])) for path in seen}
                )
                if moved:
                    return conn.sendall(frame(moved))

    def _until(self, conn, reached):
        """Waits, holding the lock in between; the error if it comes first."""
        self.failure = None
        while not self.changes.wait_for(lambda: self.failure or reached(), 0.05):
            # A loader that hung up will not say so otherwise.
            with contextlib.suppress(BlockingIOError):
                if conn.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                    raise ConnectionError("the loader is gone")
        return None if reached() else self.failure
