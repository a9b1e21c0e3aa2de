"""Tensors in the order in which they arrive."""

from __future__ import annotations

import bisect
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from ._errors import Invalid, ProtocolError
from ._ranges import checked
from ._socket import Session, inode_of
from ._tensors import HeaderIncomplete, TensorInfo, Tensors

if TYPE_CHECKING:
    from ._artifact import Artifact, File, Progress


class Stream:
    """An iterator over `(name, tensor)`, each as soon as all of it is on this host; see `Artifact.stream`. It has a
    connection of its own, so that other threads may read other things meanwhile. Not to be shared by threads."""

    def __init__(
        self,
        artifact: Artifact,
        paths: List[str],
        raw: bool,
        progress: Optional[Callable[[Progress], None]],
        owner: bool = False,
    ):
        self.artifact = artifact
        """What is streamed: its other files can be read meanwhile."""
        self._progress = progress
        self._owner = owner
        self._ready: Deque[TensorInfo] = deque()
        self._index: Dict[str, TensorInfo] = {}
        self._tensors = Tensors({path: artifact[path] for path in paths}, self._index, raw)
        # Files that are on their way, and, where nothing is, those still to be read.
        self._arriving: Dict[str, _Arriving] = {}
        self._here: Deque[str] = deque()
        self._side: Optional[Session] = None
        self._frames: Iterator[Dict[str, Any]] = iter(())
        if artifact.complete:
            self._here.extend(paths)
        elif paths:
            self._arriving = {path: _Arriving(artifact[path]) for path in paths}
            self._side = artifact._session.side()
            self._frames = self._side.follow(paths)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Tuple[str, Any]:
        try:
            while not self._ready:
                if self._here:
                    self._ready.extend(self._expect(self._here.popleft(), self.artifact._header))
                else:
                    self._hear(next(self._frames))
            name = self._ready.popleft().name
            return name, self._view(name)
        except StopIteration:
            short = next((path for path, arriving in self._arriving.items() if arriving.short), None)
            self.hang_up()
            if short is not None:
                raise ProtocolError(f"the daemon said that all is here, but not that all of {short} is") from None
            raise
        except BaseException:
            self.hang_up()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; that of `weighlock.stream` closes its artifact as well."""
        self.hang_up()
        self._ready.clear()
        if self._owner:
            self.artifact.close()

    def hang_up(self) -> None:
        """Ends the stream's own connection; the artifact stays open. Done by itself at the end and after an error."""
        side, self._side = self._side, None
        self._frames = iter(())
        self._here.clear()
        self._arriving = {}
        if side is not None:
            side.close()

    def _hear(self, frame: Dict[str, Any]) -> None:
        if frame["event"] == "progress" and self._progress is not None:
            from ._artifact import _progress

            self._progress(_progress(frame))
        elif frame["event"] == "ranges":
            path = str(frame.get("path"))
            arriving = self._arriving.get(path)
            if arriving is None:
                raise ProtocolError(f"the daemon declared ranges of {path!r}, which was not asked for")
            ranges = checked(frame.get("ready"), arriving.file.size, path)
            arriving.file._landed(inode_of(frame), ranges)
            if arriving.pending is not None:
                self._ready.extend(arriving.take(ranges))
            elif arriving.file._prefix() >= arriving.header_bytes:
                self._try_header(path, arriving)

    def _try_header(self, path: str, arriving: _Arriving) -> None:
        ready = arriving.file._prefix()
        try:
            infos = self._expect(path, lambda file: self.artifact._parse(file, ready))
        except HeaderIncomplete as stop:
            # Parsing starts anew each time, so not at every few bytes more.
            arriving.header_bytes = min(arriving.file.size, max(stop.need, ready * 5 // 4))
            return
        arriving.expect(infos)
        self._ready.extend(arriving.take([(0, arriving.file.size)]))

    def _expect(self, path: str, parse: Callable[[File], List[TensorInfo]]) -> List[TensorInfo]:
        infos = parse(self.artifact[path])
        for info in infos:
            other = self._index.setdefault(info.name, info)
            if other is not info:
                raise Invalid(
                    f"tensor {info.name!r} is both in {other.path} and in {path}",
                    f"name the files: stream({other.path!r})",
                )
        return infos

    def _view(self, name: str) -> Any:
        try:
            import numpy  # noqa: F401
        except ImportError:
            return self._tensors.bytes(name)
        return self._tensors[name]


class _Arriving:
    """One file of a stream: which of its tensors were not yielded yet."""

    def __init__(self, file: File):
        self.file = file
        self.header_bytes = 1
        """How much must be there, from the start, before its header is tried (again)."""
        self.pending: Optional[List[Optional[TensorInfo]]] = None
        """By offset; None for those that were taken. None as a whole while the header is not read."""
        self._ends: List[int] = []
        self._left = 0

    @property
    def short(self) -> bool:
        """Whether something of it was not taken."""
        return self.pending is None or self._left > 0

    def expect(self, infos: List[TensorInfo]) -> None:
        """The header is read."""
        self.pending = list(infos)
        self._left = len(infos)
        # Tensors do not overlap, so their ends ascend as their offsets do.
        self._ends = [info.offset + info.nbytes for info in infos]

    def take(self, ranges: List[Tuple[int, int]]) -> Iterator[TensorInfo]:
        """The tensors that `ranges`, which came last, made whole."""
        pending = self.pending or []
        for start, end in ranges:
            at = bisect.bisect_left(self._ends, start)
            while at < len(pending):
                info = pending[at]
                if info is None:
                    if self._ends[at] > end:
                        break
                elif info.offset >= end and info.nbytes:
                    break
                elif self.file._has(info.offset, info.offset + info.nbytes):
                    pending[at] = None
                    self._left -= 1
                    yield info
                at += 1
