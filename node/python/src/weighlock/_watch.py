"""The head of a channel, and each one that takes its place."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from typing import Any, Dict, NamedTuple, Optional, Union

from ._errors import Closed, ConnectionError, Invalid, ProtocolError, TimeoutError, Unavailable, from_frame
from ._socket import Connection, connect

RETRY_PAUSE_SECONDS = 1.0
"""Before a daemon that went away is looked for again."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_log = logging.getLogger("weighlock")


class Head(NamedTuple):
    """What a channel runs."""

    ref: str
    """The channel."""
    digest: Optional[str]
    """Its manifest, to open as `ns/name@DIGEST`; None while it has no head."""
    statement: Optional[str]
    """Id of the promotion or rollback that made it the head; `weighlock statement show` prints it."""
    since: Optional[int]
    """When that took effect, Unix seconds by the signers' clocks."""
    rolled_back: bool
    """Whether the channel went back to it."""
    closed: Optional[str]
    """Why it does not open on this host, in words; None if it does."""


def watch(
    ref: str,
    socket: Union[str, os.PathLike, None] = None,
    timeout: Optional[float] = None,
    patience: Optional[float] = None,
) -> Watch:
    """Yields the head of the channel `ns/name:stage`: at once, and each time that it moves, rollbacks included, or
    that it opens on this host no longer, or again. It ends when it is closed.

    `socket` names the loader socket, else it is looked for (see the README). `timeout`: how many seconds the daemon
    may take for its first answer; None waits for ever. A channel may be silent for months, so the wait for its next
    head has no bound. A daemon that goes away later is looked for again for `patience` seconds (None is for ever, 0
    not at all); what moved meanwhile is told when it is back.

    Raises a subclass of `weighlock.Error`: `Invalid` for what is no channel, `ConnectionError` if no daemon answers.
    """
    if not isinstance(ref, str):
        raise Invalid(f"a channel is a text such as ns/name:production, not {type(ref).__name__}")
    return Watch(ref, socket, timeout, patience)


class Watch:
    """An iterator over the heads of a channel; see `weighlock.watch`. One thread iterates, any may close it."""

    def __init__(
        self,
        ref: str,
        socket: Union[str, os.PathLike, None] = None,
        timeout: Optional[float] = None,
        patience: Optional[float] = None,
    ):
        self.ref = ref
        """The channel."""
        self._timeout = timeout
        self._patience = patience
        self._pid = os.getpid()
        # Held while something is received. Reentrant: a signal handler may close what its own thread waits for.
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._connection: Optional[Connection] = None
        self._last: Optional[Head] = None
        try:
            # Said here, so that a wrong channel is an error of the call and not of a loop's first turn.
            self._first: Optional[Head] = self._begin(socket)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Head:
        if self._pid != os.getpid():
            raise Closed(f"this watch began in process {self._pid}", "watch again in this process")
        with self._lock:
            head, self._first = self._first, None
            try:
                # A daemon that is back tells again what it has told before.
                while head is None or head == self._last:
                    head = self._next()
            except BaseException as error:
                ended = self._ended.is_set() and isinstance(error, Exception)
                self.close()
                if ended:
                    raise StopIteration from None
                raise
            self._last = head
            return head

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; a thread that waits for the next head sees the end of the iteration."""
        self._ended.set()
        if self._pid != os.getpid():
            # The parent's lock may be held by a thread that does not exist here; only this copy is closed.
            if self._connection is not None:
                self._connection.close()
            return
        connection = self._connection
        if connection is not None:
            connection.hang_up()
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def _next(self) -> Head:
        """The next head that is told, by a daemon that is looked for again if it went away."""
        lost: Optional[float] = None
        while True:
            if self._ended.is_set() or self._connection is None:
                raise Closed("this watch is closed")
            try:
                return self._hear() if lost is None else self._begin(self._connection.path)
            except (ConnectionError, Unavailable, TimeoutError) as error:
                self._connection.close()
                if lost is None:
                    lost = time.monotonic()
                    _log.warning("%s: %s; looks for it again", self.ref, error.message)
                gone = time.monotonic() - lost
                if self._patience is not None and gone + RETRY_PAUSE_SECONDS > self._patience:
                    raise
                self._ended.wait(RETRY_PAUSE_SECONDS)

    def _begin(self, place: Union[str, os.PathLike, None]) -> Head:
        """Connects, asks, and gives the head that there is now."""
        connection = self._connection = connect(place, self._timeout)
        connection.send({"op": "watch", "ref": self.ref})
        head = self._hear()
        connection.settimeout(None)
        return head

    def _hear(self) -> Head:
        assert self._connection is not None
        while True:
            frame, fds = self._connection.receive()
            for fd in fds:
                fd.close()
            if frame["event"] == "error":
                raise from_frame(frame)
            # Events of a newer daemon pass by unheard.
            if frame["event"] == "head":
                return _head(frame)


def _head(frame: Dict[str, Any]) -> Head:
    def text(key: str) -> Optional[str]:
        value = frame.get(key)
        if value is not None and not isinstance(value, str):
            raise ProtocolError(f"the daemon told a head whose {key} is no text")
        return value

    ref, digest, since = text("ref"), text("digest"), frame.get("since")
    if ref is None or (digest is not None and not _DIGEST.fullmatch(digest)):
        raise ProtocolError("the daemon told a head without a channel, or with a digest that is none")
    if since is not None and type(since) is not int:
        raise ProtocolError("the daemon told a head since a time that is none")
    return Head(ref, digest, text("statement"), since, frame.get("rolled_back") is True, text("closed"))
