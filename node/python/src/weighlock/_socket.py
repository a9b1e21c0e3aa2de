"""The loader socket: where it is, frames with file descriptors, and the one session that an artifact holds."""

from __future__ import annotations

import array
import builtins
import json
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Union

from ._client import client
from ._errors import Closed, ConnectionError, Error, Invalid, ProtocolError, TimeoutError, from_frame

PROTOCOL = 1
"""Version of the loader protocol that is spoken here."""
SOCKET_PATH_BYTES_MAX = 107
"""Longest path of a Unix socket, in bytes."""
FRAME_BYTES_MAX = 16 << 20
"""Largest frame, in bytes, in either direction."""
FDS_PER_FRAME_MAX = 64
"""Most file descriptors with one frame, and most paths in one request."""
HELD_FDS_MAX = 256
"""Most descriptors kept open for reuse per artifact. Those that `File.fileno` gave out come on top."""
SIDE_IDLE_MAX = 4
"""Most further connections kept for waiting, per artifact, when nobody waits."""
PATIENCE_SECONDS = 30.0
"""How long a daemon that is away is waited for, unless WEIGHLOCK_CONNECT_PATIENCE says otherwise."""
RETRY_PAUSE_SECONDS = 0.1
"""Between two looks at whether it is back."""

_log = logging.getLogger("weighlock")
_FD = struct.Struct("=i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(FDS_PER_FRAME_MAX * _FD.size)
# Set on receipt, so that no other thread's exec can inherit a descriptor in between. (`socket.recv_fds` drops
# the flags it is given, so it cannot be used here.)
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def candidates(path: Union[str, os.PathLike, None] = None) -> List[str]:
    """Where to look for the loader socket. A place that somebody named (argument, WEIGHLOCK_SOCKET,
    WEIGHLOCK_DATA_DIR) is the only one: another daemon's store is never a silent substitute."""
    if path is not None:
        return [os.fspath(path)]
    if os.environ.get("WEIGHLOCK_SOCKET"):
        return [os.environ["WEIGHLOCK_SOCKET"]]
    if os.environ.get("WEIGHLOCK_DATA_DIR"):
        return [os.path.join(os.environ["WEIGHLOCK_DATA_DIR"], "run", "loader.sock")]
    data_home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return [
        "/run/weighlock/loader.sock",
        os.path.join(data_home, "weighlock", "run", "loader.sock"),
    ]


def patience_of(environment: Mapping[str, str]) -> float:
    """Seconds for which a daemon that is away is waited for: it may be restarting."""
    text = environment.get("WEIGHLOCK_CONNECT_PATIENCE", "").strip()
    if not text:
        return PATIENCE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise Invalid(
            f"WEIGHLOCK_CONNECT_PATIENCE is {text!r}, which is no number of seconds",
            "for example 60, or 0 to give up at once",
        )
    return seconds


def connect_patiently(
    path: Union[str, os.PathLike, None] = None,
    timeout: Optional[float] = None,
    patience: Optional[float] = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Connection:
    """As `connect`; a daemon that is away is looked for again for `patience` seconds (None: as the environment says).
    One that was never there is not waited for: where nobody named a place, a socket's directory must exist."""
    patience = patience_of(os.environ) if patience is None else patience
    until = time.monotonic() + patience
    waiting = False
    while True:
        try:
            return connect(path, timeout)
        except ConnectionError as error:
            named = path is not None or os.environ.get("WEIGHLOCK_SOCKET") or os.environ.get("WEIGHLOCK_DATA_DIR")
            away = named or any(os.path.isdir(os.path.dirname(place)) for place in candidates(path))
            if error.denied or not away or given_up() or time.monotonic() + RETRY_PAUSE_SECONDS > until:
                raise
            if not waiting:
                waiting = True
                _log.warning("%s; waits up to %g s for it", error.message, patience)
            time.sleep(RETRY_PAUSE_SECONDS)


def connect(path: Union[str, os.PathLike, None] = None, timeout: Optional[float] = None) -> Connection:
    """Connects to the first daemon that answers. `timeout` in seconds, None waits for ever.

    Raises ConnectionError that lists every place and why it did not serve.
    """
    tried = []
    denied = False
    for place in candidates(path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(sock, place, timeout)
        except (OSError, ValueError) as error:
            sock.close()
            denied = denied or isinstance(error, PermissionError)
            tried.append(f"{place} ({getattr(error, 'strerror', None) or error})")
        except BaseException:
            sock.close()
            raise
        else:
            return Connection(sock, place)
    hint = "start a daemon with `weighlock up`, or name its socket with WEIGHLOCK_SOCKET"
    if denied:
        hint = "the socket belongs to a group that this user is not in; " + hint
    error = ConnectionError("no Weighlock daemon answers; looked at " + ", ".join(tried), hint)
    # Waiting does not help those who may not, or who name what can be no socket.
    error.denied = denied or len(os.fsencode(place)) > SOCKET_PATH_BYTES_MAX
    raise error


def _connect(sock: socket.socket, place: str, timeout: Optional[float]) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    sock.settimeout(timeout)
    while True:
        try:
            return sock.connect(place)
        except BlockingIOError:
            # A Unix socket whose backlog is full says so at once, whatever the timeout.
            if deadline is not None and time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


class Fd:
    """A file descriptor that is closed when nobody refers to it any more, so that no reader can have one closed
    under it and none is forgotten."""

    __slots__ = ("number",)

    def __init__(self, number: int):
        self.number = number

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Closes it now; for descriptors that nobody else has seen yet."""
        number, self.number = self.number, -1
        if number >= 0:
            _close(number)

    __del__ = close


class Connection:
    """Frames over one socket. Not thread-safe: `Session` adds the lock."""

    def __init__(self, sock: socket.socket, path: str):
        self._sock = sock
        self._timeout = sock.gettimeout()
        self.path = path

    def close(self) -> None:
        # Only close: a shutdown would also end the copy that a forked parent or child still uses.
        self._sock.close()

    def hang_up(self) -> None:
        """Ends both directions, also under a thread that waits for a frame, and leaves the descriptor to it."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def settimeout(self, timeout: Optional[float]) -> None:
        self._timeout = timeout
        self._sock.settimeout(timeout)

    def again(self, given_up: Callable[[], bool] = lambda: False) -> Connection:
        """A new connection to the same daemon, or to the one that takes its place after a restart."""
        return connect_patiently(self.path, self._timeout, None, given_up)

    def send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > FRAME_BYTES_MAX:
            raise ProtocolError(f"a request of {len(body)} bytes is over the limit of {FRAME_BYTES_MAX}")
        self._io(self._sock.sendall, struct.pack(">I", len(body)) + body)

    def parting(self) -> Optional[Error]:
        """The error that the daemon sent before it closed the connection, if it did."""
        try:
            frame, fds = self.receive()
        except Error:
            return None
        for fd in fds:
            fd.close()
        return from_frame(frame) if frame["event"] == "error" else None

    def receive(self) -> Tuple[Dict[str, Any], List[Fd]]:
        """One frame and the descriptors that came with its first byte.

        Raises ConnectionError at the end of the stream, ProtocolError for anything that is not a frame;
        descriptors of a frame that did not come whole are closed.
        """
        fds: List[Fd] = []
        try:
            return self._receive(fds), fds
        except BaseException:
            for fd in fds:
                fd.close()
            raise

    def _receive(self, fds: List[Fd]) -> Dict[str, Any]:
        prefix = b""
        truncated = False
        while len(prefix) < 4:
            part, ancillary, flags, _ = self._io(self._sock.recvmsg, 4 - len(prefix), _ANCILLARY_BYTES, _RECEIVE_FLAGS)
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i", data[: len(data) - len(data) % _FD.size])
                    fds.extend(Fd(number) for number in numbers)
            truncated = truncated or bool(flags & socket.MSG_CTRUNC)
            if not part:
                raise self._gone("in the middle of a frame" if prefix else "")
            prefix += part
        if truncated:
            raise ProtocolError(
                "not all file descriptors of a frame could be received",
                "this process may be at its limit of open files: raise it with `ulimit -n`",
            )
        (length,) = struct.unpack(">I", prefix)
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(
                f"the daemon at {self.path} announces a frame of {length} bytes, over the limit of {FRAME_BYTES_MAX}",
                "is this really the loader socket (`loader.sock`)?",
            )
        body = bytearray(length)
        view = memoryview(body)
        while view:
            count = self._io(self._sock.recv_into, view)
            if not count:
                raise self._gone("in the middle of a frame")
            view = view[count:]
        try:
            message = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the daemon at {self.path} sent a frame that is not JSON: {error}") from None
        if not isinstance(message, dict) or not isinstance(message.get("event"), str):
            raise ProtocolError(f"the daemon at {self.path} sent a frame without an event")
        return message

    def _io(self, call: Callable, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except builtins.TimeoutError:
            raise self._silent() from None
        except socket.timeout:  # its own class before Python 3.10
            raise self._silent() from None
        except OSError as error:
            raise self._gone(f"({error.strerror or error})") from None

    def _silent(self) -> TimeoutError:
        return TimeoutError(
            f"the daemon at {self.path} said nothing for {self._sock.gettimeout()} seconds",
            "`weighlock status` shows what it is doing; a larger `timeout` waits longer",
        )

    def _gone(self, how: str) -> ConnectionError:
        return ConnectionError(
            f"the daemon at {self.path} closed the connection {how}".rstrip(),
            "its log says why; open the artifact again when it is back",
        )


class Session:
    """One connection with its lease, and the descriptors that came over it. Safe to use from many threads.

    Lives as long as the artifact or any of its files is referred to, or until `close`.
    """

    def __init__(self, connection: Connection):
        # Reentrant: a signal handler closes it in the thread that waits for an answer.
        self._lock = threading.RLock()
        self._talking = False
        self._pid = os.getpid()
        self._connection = connection
        self._closed = False
        self._digest = ""
        self._name = ""
        self._partial = False
        self._idle: List[Session] = []
        # Those on which somebody waits.
        self._waiting: List[Session] = []
        self.complete = True
        """Whether all files are known to be on this host."""
        self._held: OrderedDict[str, Fd] = OrderedDict()
        self._pinned: Dict[str, Fd] = {}
        # Of files that others took the place of: somebody may still use the numbers.
        self._replaced: List[Fd] = []

    def __del__(self) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Ends the lease. Descriptors close as soon as no reader is using them; mappings stay."""
        self._closed = True
        if self._pid == os.getpid():
            for side in list(self._waiting):
                # Each has a lease of its own.
                side._closed = True
                side._connection.hang_up()
            # Waits for a request that is under way: its socket must not be closed, and its number reused, under it.
            with self._lock:
                self._drop()
        else:
            self._drop()

    def _drop(self) -> None:
        self._connection.close()
        # Rebound, not cleared: a reader in another thread may be looking at the old ones.
        self._held = OrderedDict()
        self._pinned = {}
        self._replaced = []
        idle, self._idle = self._idle, []
        for side in idle:
            side.close()

    def open(
        self,
        ref: str,
        progress: Optional[Callable[[Dict[str, Any]], None]],
        partial: bool = False,
        contract: bool = True,
    ) -> Dict[str, Any]:
        """Opens `ref` and gives the raw `opened` frame, with the contract unless that is not wanted. `progress` hears
        every raw progress frame. A `partial` open is answered while the files are on their way."""
        opened: Dict[str, Any] = {}

        def on_frame(frame: Dict[str, Any], _fds: List[Fd]) -> bool:
            if frame["event"] == "progress" and progress is not None:
                progress(frame)
            elif frame["event"] == "opened":
                opened.update(frame)
            return bool(opened)

        request: Dict[str, Any] = {"v": PROTOCOL, "op": "open", "ref": ref, "fds": "none", "client": client()}
        if partial:
            request["partial"] = True
        if not contract:
            request["contract"] = False
        with self._exchanging():
            # Where it was restarted under the open, the one that takes its place goes on with what it had fetched.
            self._patiently(lambda: self._talk(request, on_frame), self._connect_again)
        self._partial = partial
        self._digest = str(opened.get("digest"))
        self._name = ref.split("@", 1)[0].rsplit(":", 1)[0]
        # A daemon that knows nothing of partial opens has waited until all was here.
        self.complete = not partial or opened.get("complete", True) is True
        return opened

    def contract(self) -> Any:
        """The contract, as the daemon read it."""
        got: List[Any] = []

        def on_frame(frame: Dict[str, Any], _fds: List[Fd]) -> bool:
            if frame["event"] == "contract":
                got.append(frame.get("contract"))
            return bool(got)

        def ask() -> None:
            got.clear()
            self._talk({"op": "contract", "digest": self._digest}, on_frame)

        self._lasting(ask)
        return got[0]

    def side(self) -> Session:
        """Another connection with the same artifact open, for what takes long: nobody waits behind it."""
        # Says so if this is a forked child, or if it is closed.
        with self._exchanging():
            if self._closed:
                raise _closed()
            if self._idle:
                return self._idle.pop()
            connection = self._connection.again(lambda: self._closed)
        side = Session(connection)
        try:
            side.open(f"{self._name}@{self._digest}", None, partial=True, contract=False)
        except BaseException:
            side.close()
            raise
        return side

    def wait(self, path: str, ranges: List[Tuple[int, int]], progress: Optional[Callable] = None) -> int:
        """Returns once all of `ranges` of a file is ready, with the inode of the file that has them."""
        side = self.side()
        self._waiting.append(side)
        inode: List[int] = []

        def on_frame(frame: Dict[str, Any], _fds: List[Fd]) -> bool:
            if frame["event"] == "progress" and progress is not None:
                progress(frame)
            elif frame["event"] == "ready":
                inode.append(inode_of(frame))
            return bool(inode)

        request = {"op": "wait", "digest": self._digest, "path": path, "ranges": ranges}
        try:
            side._lasting(lambda: side._talk(request, on_frame))
        except Error:
            # An error frame leaves the connection usable.
            self._give_back(side)
            raise
        except BaseException:
            side.close()
            raise
        finally:
            self._waiting.remove(side)
        self._give_back(side)
        return inode[0]

    def _give_back(self, side: Session) -> None:
        with self._lock:
            if not self._closed and not side._connection.closed and len(self._idle) < SIDE_IDLE_MAX:
                self._idle.append(side)
                return
        side.close()

    def follow(self, paths: List[str]) -> Iterator[Dict[str, Any]]:
        """Raw `ranges` and `progress` frames until all of the files at `paths` is ready. For a connection of its own
        (see `side`): who stops listening must close it."""
        begun = False
        while True:
            with self._exchanging():
                if self._closed:
                    return
                try:
                    if not begun:
                        self._connection.send({"op": "follow", "digest": self._digest, "paths": paths})
                        begun = True
                    frame, _fds = self._connection.receive()
                except ConnectionError as error:
                    if self._closed:
                        return
                    # What was told before is told again; that is harmless.
                    self._patiently(lambda cause=error: self._open_again(cause), self._connect_again)
                    begun = False
                    continue
            if frame["event"] == "error":
                raise from_frame(frame)
            if frame["event"] == "complete":
                return
            yield frame

    def forget(self, path: str) -> None:
        """Drops the descriptor of a file: another file has taken its place."""
        with self._lock:
            self._held.pop(path, None)
            pinned = self._pinned.pop(path, None)
            if pinned is not None:
                self._replaced.append(pinned)

    def hello(self) -> Dict[str, Any]:
        """What the daemon says of itself."""
        answer: Dict[str, Any] = {}

        def on_frame(frame: Dict[str, Any], _fds: List[Fd]) -> bool:
            if frame["event"] == "hello":
                answer.update(frame)
            return bool(answer)

        self._exchange({"op": "hello", "client": client()}, on_frame)
        return answer

    def fd(self, path: str, size: int, pin: bool = False) -> Fd:
        """The descriptor of one file, from the table or the daemon. A pinned one stays open until `close`."""
        fd = self._pinned.get(path) or self._held.get(path)
        if fd is None:
            fd = self._ask([path], {path: size})[path]
        if pin:
            with self._lock:
                # The first one stays: somebody may have its number.
                fd = self._pinned.setdefault(path, fd)
        return fd

    def fetch(self, sizes: Mapping[str, int]) -> None:
        """Fills the table with the descriptors of `sizes`, at most FDS_PER_FRAME_MAX, by one request."""
        missing = [path for path in sizes if path not in self._held and path not in self._pinned]
        if missing:
            self._ask(missing, sizes)

    def _ask(self, paths: List[str], sizes: Mapping[str, int]) -> Dict[str, Fd]:
        wanted: Set[str] = set()
        got: Dict[str, Fd] = {}

        def on_frame(frame: Dict[str, Any], fds: List[Fd]) -> bool:
            if frame["event"] != "fds":
                return False
            names = frame.get("paths")
            if not isinstance(names, list) or len(names) != len(fds) or not names:
                count = len(names) if isinstance(names, list) else 0
                raise ProtocolError(f"the daemon named {count} files and sent {len(fds)} descriptors")
            for name, fd in zip(names, fds):
                if not isinstance(name, str) or name not in wanted or name in got:
                    raise ProtocolError(f"the daemon sent a descriptor for {name!r}, which was not asked for")
                _check(name, fd, sizes[name])
                got[name] = fd
            return len(got) == len(wanted)

        def ask() -> None:
            got.clear()
            self._talk({"op": "fds", "digest": self._digest, "paths": sorted(wanted)}, on_frame)

        with self._exchanging():
            # Another thread may have asked while this one waited for its turn.
            here = {path: self._pinned.get(path) or self._held.get(path) for path in paths}
            known = {path: fd for path, fd in here.items() if fd is not None}
            wanted.update(path for path in paths if path not in known)
            if wanted:
                self._lasting(ask, locked=True)
            for path, fd in got.items():
                self._held[path] = fd
            while len(self._held) > HELD_FDS_MAX:
                self._held.popitem(last=False)
        return {**known, **got}

    def _lasting(self, ask: Callable[[], None], locked: bool = False) -> None:
        """Asks, and asks again after opening the artifact again where the daemon was restarted."""
        if not locked:
            with self._exchanging():
                return self._lasting(ask, locked=True)
        self._patiently(ask, self._open_again)

    def _patiently(self, ask: Callable[[], None], again: Callable[[ConnectionError], None]) -> None:
        """Asks until it is answered or patience ends; `again` makes up for what was lost. A daemon that is ending still
        has its socket for a moment, so that one more try may not be enough."""
        patience = patience_of(os.environ)
        until: Optional[float] = None
        lost: Optional[ConnectionError] = None
        while True:
            begun = time.monotonic()
            try:
                if lost is not None:
                    again(lost)
                return ask()
            except ConnectionError as error:
                now = time.monotonic()
                # From the loss on: what was asked for may have taken hours.
                if until is None or now - begun > patience:
                    until = now + patience
                if self._closed or now + RETRY_PAUSE_SECONDS > until:
                    raise
                if lost is not None:
                    time.sleep(RETRY_PAUSE_SECONDS)
                lost = error

    def _open_again(self, error: ConnectionError) -> None:
        """A lease for the same digest, and so the same bytes, on a new connection. Descriptors and mappings last."""
        if not self._digest:
            raise error
        self._connect_again(error)
        request: Dict[str, Any] = {"v": PROTOCOL, "op": "open", "ref": f"{self._name}@{self._digest}", "fds": "none"}
        request.update(client=client(), contract=False)
        # Whoever was told that all is here is handed nothing that is on its way.
        if self._partial and not self.complete:
            request["partial"] = True
        self._talk(request, lambda frame, _fds: frame["event"] == "opened")

    def _connect_again(self, error: ConnectionError) -> None:
        if self._closed or not patience_of(os.environ):
            raise error
        self._connection.close()
        try:
            self._connection = self._connection.again(lambda: self._closed)
        except ConnectionError:
            raise error from None

    def _exchange(self, request: Mapping[str, Any], on_frame: Callable) -> None:
        with self._exchanging():
            self._talk(request, on_frame)

    def _exchanging(self) -> Any:
        # Asked before the lock is taken: in a forked child it may be held by a thread that does not exist.
        if self._pid != os.getpid():
            raise Closed(
                f"this artifact was opened in process {self._pid}; its socket cannot be shared after a fork",
                "open it again in this process, or map what you need before the fork",
            )
        return self._lock

    def _talk(self, request: Mapping[str, Any], on_frame: Callable[[Dict[str, Any], List[Fd]], bool]) -> None:
        """Sends one request and hands frames to `on_frame` until it says that the answer is complete. After an
        error frame the connection stays usable; after anything else it is out of step and is closed."""
        if self._closed:
            raise _closed()
        if self._talking:
            raise Invalid(
                "this artifact is in the middle of a request in the same thread",
                "in a signal handler, do nothing with it but close it",
            )
        if self._connection.closed:
            raise ConnectionError("the connection of this artifact was lost", "open the artifact again")
        received: List[Fd] = []
        error = None
        try:
            self._talking = True
            try:
                self._connection.send(request)
            except ConnectionError:
                # It may have said why before it hung up.
                error = self._connection.parting()
                if error is None:
                    raise
            while error is None:
                frame, fds = self._connection.receive()
                received += fds
                if frame["event"] == "error":
                    error = from_frame(frame)
                # Events of a newer daemon pass by unheard.
                elif on_frame(frame, fds):
                    return
        except BaseException:
            self._connection.close()
            for fd in received:
                fd.close()
            raise
        finally:
            self._talking = False
        for fd in received:
            fd.close()
        raise error


def inode_of(frame: Mapping[str, Any]) -> int:
    """The inode that a `ready` or `ranges` frame names."""
    inode = frame.get("inode")
    if type(inode) is not int or inode < 0:
        raise ProtocolError("the daemon said that something is ready, but not in which file")
    return inode


def _closed() -> Closed:
    return Closed("this artifact is closed", "open it again, or keep it open while its files are needed")


def _check(path: str, fd: Fd, size: int) -> None:
    # A file shorter than its manifest says would turn a mapped read into SIGBUS.
    found = os.fstat(fd.number)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise ProtocolError(f"the daemon sent {path!r} with {found.st_size} bytes; its manifest says {size}")
