"""A loader socket for testing the client alone: the protocol over a real Unix socket with real descriptors, and a
way to send wrong bytes. It is no daemon: it serves a directory, proves nothing, and its BLAKE3 texts are opaque."""

import array
import hashlib
import json
import os
import shutil
import socket
import struct
import tempfile
import threading

KINDS = {".safetensors": "weights", ".gguf": "weights", ".json": "config"}


def frame(message):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def send_with_fds(conn, message, fds):
    """Prefix with the descriptors attached, then the body, as the protocol demands."""
    whole = frame(message)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = conn.sendmsg([whole[:4]], rights)
    conn.sendall(whole[sent:])


def receive_frame(conn):
    """One request, or None at the end."""
    prefix = conn.recv(4, socket.MSG_WAITALL)
    if len(prefix) < 4:
        return None
    (length,) = struct.unpack(">I", prefix)
    return json.loads(conn.recv(length, socket.MSG_WAITALL))


class LoaderServer:
    """Serves the files of `root` as `test/model:1.0.0`, or hands each connection to `script(conn)`.

    `requests` lists every request heard; `open_connections` counts leases.
    """

    def __init__(self, root=None, script=None, progress=(), contract=None):
        self.root = root
        self.script = script
        self.progress = progress
        self.contract = contract
        self.requests = []
        self.open_connections = 0
        self.changed = threading.Condition()
        self.directory = tempfile.mkdtemp(prefix="weighlock-test-")
        self.path = os.path.join(self.directory, "loader.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        shutil.rmtree(self.directory)

    def wait_for_leases(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: self.open_connections == count, 30)

    def _accept(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        self._count(1)
        try:
            with conn:
                if self.script is not None:
                    self.script(conn)
                else:
                    self._talk(conn)
        except OSError:
            pass
        finally:
            self._count(-1)

    def _count(self, change):
        with self.changed:
            self.open_connections += change
            self.changed.notify_all()

    def _talk(self, conn):
        while True:
            request = receive_frame(conn)
            if request is None:
                return
            self.requests.append(request)
            getattr(self, "_op_" + request["op"])(conn, request)

    def _op_hello(self, conn, _request):
        conn.sendall(frame({"event": "hello", "protocol": 1, "version": "0.1.0"}))

    def _op_open(self, conn, request):
        assert request["v"] == 1
        for event in self.progress:
            conn.sendall(frame({"event": "progress", **event}))
        if request["ref"] != "test/model:1.0.0":
            message = {"event": "error", "code": "not_found", "message": f"no {request['ref']}", "hint": "weighlock ls"}
            return conn.sendall(frame(message))
        files = [self._entry(path) for path in self._paths()]
        conn.sendall(frame(opened(files, self.contract if request.get("contract", True) else None)))

    def _op_contract(self, conn, _request):
        conn.sendall(frame({"event": "contract", "contract": self.contract}))

    def _op_fds(self, conn, request):
        known = set(self._paths())
        for path in request["paths"]:
            if path not in known:
                return conn.sendall(
                    frame(
                        {"event": "error", "code": "refused", "message": f"{path} is not in the manifest", "hint": None}
                    )
                )
        paths = request["paths"]
        for start in range(0, len(paths), 64):
            part = paths[start : start + 64]
            fds = [os.open(os.path.join(self.root, path), os.O_RDONLY | os.O_CLOEXEC) for path in part]
            try:
                send_with_fds(conn, {"event": "fds", "paths": part}, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _paths(self):
        found = []
        for directory, _, names in os.walk(self.root):
            found += [os.path.relpath(os.path.join(directory, name), self.root) for name in names]
        return sorted(found)

    def _entry(self, path):
        with open(os.path.join(self.root, path), "rb") as file:
            data = file.read()
        kind = KINDS.get(os.path.splitext(path)[1], "other")
        return entry(path, len(data), kind, hashlib.sha256(data).hexdigest())


def entry(path, size, kind="other", sha256="0" * 64):
    return {"path": path, "kind": kind, "size": size, "blake3": "b" * 64, "sha256": sha256}


def opened(files, contract=None, digest="sha256:" + "d" * 64):
    return {
        "event": "opened",
        "ref": "test/model:1.0.0",
        "digest": digest,
        "manifest_bytes": 1000,
        "files": files,
        "contract": contract,
        "fds": 0,
    }
