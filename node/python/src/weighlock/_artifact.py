"""An open artifact and its files."""

from __future__ import annotations

import io
import json
import mmap as memory_map
import os
import re
import threading
import weakref
from types import MappingProxyType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from . import _gguf, _safetensors
from ._errors import Invalid, NotFound, ProtocolError, Unavailable
from ._ranges import Ranges
from ._socket import FDS_PER_FRAME_MAX, Fd, Session, connect_patiently
from ._stream import Stream
from ._tensors import HeaderIncomplete, TensorInfo, Tensors, merge, torch_tensor

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PARSERS = {".safetensors": _safetensors.parse, ".gguf": _gguf.parse}
# Linux; keeps a writable private mapping of a large file out of the commit limit. In `mmap` since Python 3.11.
_MAP_NORESERVE = getattr(memory_map, "MAP_NORESERVE", 0x4000)
_READ_BYTES_MAX = 1 << 30
# Waited for first of a file whose header is to be read.
_HEAD_BYTES = 64 << 10


class Progress(NamedTuple):
    """How far the daemon is with an artifact that this host does not hold yet."""

    phase: str
    """What it is doing: `fetch`."""
    done_bytes: int
    """Verified and on this host."""
    total_bytes: int
    """Of the whole artifact."""
    sources: int
    """Hosts that it fetches from now."""


def open(  # noqa: A001 - read as weighlock.open
    ref: str,
    socket: Union[str, os.PathLike, None] = None,
    timeout: Optional[float] = None,
    progress: Optional[Callable[[Progress], None]] = None,
    partial: bool = False,
) -> Artifact:
    """Opens `ns/name:tag`, `ns/name:stage` or `ns/name@sha256:...` through the daemon on this host.

    What this host does not hold yet is fetched first; `progress` is called while that goes on, and an exception
    from it gives up. `socket` names the loader socket, else it is looked for (see the README). `timeout`: give up
    when the daemon says nothing for so many seconds (progress counts as saying something); None waits for ever.

    A daemon that is being restarted is waited for, here and later on, for 30 seconds, or as many as the environment
    variable WEIGHLOCK_CONNECT_PATIENCE says (0: not at all). Files that are open or mapped do not depend on it.

    With `partial` it returns while the files are on their way. Whatever is read then waits for its own bytes: a
    tensor for that tensor, `File.read` for its range, everything else for its file. `Artifact.stream` gives tensors
    in the order in which they arrive.

    Raises a subclass of `weighlock.Error`.
    """
    if not isinstance(ref, str):
        raise Invalid(f"a reference is a text such as ns/name:1.0.0, not {type(ref).__name__}")
    session = Session(connect_patiently(socket, timeout))
    try:
        hear = None if progress is None else lambda frame: progress(_progress(frame))
        # Most of an answer with the contract would be its list of tensors, which few look at.
        return Artifact(session, ref, session.open(ref, hear, partial, contract=False))
    except BaseException:
        session.close()
        raise


def stream(
    ref: str,
    socket: Union[str, os.PathLike, None] = None,
    timeout: Optional[float] = None,
    progress: Optional[Callable[[Progress], None]] = None,
    raw: bool = False,
) -> Stream:
    """Opens an artifact and yields `(name, tensor)` of all its tensors as they arrive on this host. The arguments
    are those of `open` and of `Artifact.tensors`; `progress` is called until the last tensor was yielded.

        with weighlock.stream("acme/support-bot:1.4.0") as arriving:
            for name, tensor in arriving:
                model.load(name, tensor)

    The artifact, with its other files, is `arriving.artifact`; the end of the `with` block closes it.
    """
    artifact = open(ref, socket, timeout, progress, partial=True)
    try:
        return Stream(artifact, artifact._weights(), raw, progress, owner=True)
    except BaseException:
        artifact.close()
        raise


class File:
    """One immutable file of an artifact. Its bytes were proven by the daemon; this is only a way to reach them."""

    __slots__ = (
        "path", "size", "kind", "blake3", "sha256", "_session", "_mapped", "_lock", "_ready", "_inode", "__weakref__"
    )  # fmt: skip

    def __init__(self, session: Session, path: str, size: int, kind: str, blake3: str, sha256: str):
        self._session = session
        self._mapped: Any = None
        # What is known to be ready, and in which file: another may take its place while it is on its way.
        self._lock = threading.Lock()
        self._ready = Ranges()
        self._inode: Optional[int] = None
        self.path = path
        """Path inside the artifact, with `/`."""
        self.size = size
        """Length in bytes."""
        self.kind = kind
        """`weights`, `config`, `tokenizer`, `prompt-template`, `adapter`, `report` or `other`."""
        self.blake3 = blake3
        """BLAKE3 root, lower-case hex."""
        self.sha256 = sha256
        """SHA-256, lower-case hex."""

    def __repr__(self) -> str:
        return f"<weighlock.File {self.path!r}: {self.kind}, {self.size} bytes>"

    def fileno(self) -> int:
        """A read-only descriptor, open until the artifact is closed. Its offset is shared by all who use it: read
        with `os.pread`, and do not close it (`os.dup` gives one of your own)."""
        self.wait()
        return self._fd(pin=True).number

    def wait(self, start: int = 0, end: Optional[int] = None) -> None:
        """Returns once the bytes from `start` up to `end` (the end of the file, when None) are on this host, and has
        them fetched before others. Raises Unavailable when nobody has them; waiting again tries again."""
        end = self.size if end is None else end
        if start < 0 or start > end or end > self.size:
            raise Invalid(f"{self.path} has {self.size} bytes; {start} to {end} is no range of it")
        if self._session.complete or self._has(start, end):
            return
        inode = self._session.wait(self.path, [(start, end)])
        self._landed(inode, [(start, end)])

    def read(self, offset: int = 0, length: Optional[int] = None) -> bytes:
        """`length` bytes from `offset` (all that follow, when None; less at the end of the file)."""
        if offset < 0 or (length is not None and length < 0):
            raise Invalid(f"{self.path}: offset and length of a read cannot be negative")
        end = self.size if length is None else min(self.size, offset + length)
        if offset >= end:
            return b""
        if end - offset > _READ_BYTES_MAX:
            return self._ready_mapping(offset, end)[offset:end]
        while True:
            self.wait(offset, end)
            inode = self._inode
            data = self._pread(offset, end)
            # Else another file took its place in between, of which other bytes are here.
            if self._session.complete or (self._inode == inode and self._has(offset, end)):
                return data

    def _pread(self, offset: int, end: int) -> bytes:
        fd = self._fd()
        data = os.pread(fd.number, end - offset, offset)
        while len(data) < end - offset:
            more = os.pread(fd.number, end - offset - len(data), offset + len(data))
            if not more:
                raise ProtocolError(f"{self.path} is shorter than its manifest says")
            data += more
        return data

    def mmap(self) -> Union[memory_map.mmap, bytes]:
        """The whole file, mapped read-only; the same mapping for as long as somebody uses it, also after the
        artifact is closed. An empty file, which cannot be mapped, gives `b""`."""
        self.wait()
        return self._mapping()

    def private_mmap(self) -> Union[memory_map.mmap, bytearray]:
        """A new copy-on-write mapping: writable memory whose changes stay in this process and never reach the file.
        For libraries that demand writable buffers."""
        self.wait()
        return self._private_mapping()

    def open(self) -> io.BufferedReader:
        """A binary file object with an offset and a life of its own. It has no `fileno`, because the offset of the
        descriptor beneath is shared."""
        self.wait()
        return io.BufferedReader(_Reader(self._fd(), self.path, self.size))

    def _mapping(self) -> Union[memory_map.mmap, bytes]:
        """As `mmap`, without waiting: what is not ready reads as zeros until it is."""
        if self.size == 0:
            return b""
        while True:
            mapped, inode = self._mapped, self._inode
            mapping = mapped() if mapped is not None else None
            if mapping is not None:
                return mapping
            # Two threads may map at once; either mapping is right.
            # Held, lest another thread has it closed while it is being mapped.
            fd = self._fd()
            mapping = memory_map.mmap(fd.number, self.size, access=memory_map.ACCESS_READ)
            with self._lock:
                if self._inode == inode:
                    self._mapped = weakref.ref(mapping)
                    return mapping
            # Another file took its place meanwhile.

    def _ready_mapping(self, start: int, end: int) -> Any:
        """The whole file mapped, once the bytes from `start` to `end` are in that very mapping."""
        while True:
            self.wait(start, end)
            mapping = self._mapping()
            if self._session.complete or self.size == 0:
                return mapping
            with self._lock:
                mapped = self._mapped
                if mapped is not None and mapped() is mapping and self._ready.covers(start, end):
                    return mapping

    def _private_mapping(self) -> Union[memory_map.mmap, bytearray]:
        if self.size == 0:
            return bytearray()
        flags = memory_map.MAP_PRIVATE | _MAP_NORESERVE
        fd = self._fd()
        return memory_map.mmap(fd.number, self.size, flags=flags, prot=memory_map.PROT_READ | memory_map.PROT_WRITE)

    def _has(self, start: int, end: int) -> bool:
        """Whether these bytes are known to be ready."""
        with self._lock:
            return self._ready.covers(start, end)

    def _prefix(self) -> int:
        """How many bytes from the start on are known to be ready."""
        with self._lock:
            return self._ready.prefix()

    def _landed(self, inode: int, ranges: Iterable[Tuple[int, int]]) -> None:
        """Notes what the daemon declared ready."""
        with self._lock:
            if inode != self._inode:
                # Mappings that exist keep what was ready in them; nothing more will appear there.
                self._inode, self._ready, self._mapped = inode, Ranges(), None
            for start, end in ranges:
                self._ready.add(start, end)

    def _fd(self, pin: bool = False) -> Fd:
        fd = self._session.fd(self.path, self.size, pin)
        if self._inode is None or os.fstat(fd.number).st_ino == self._inode:
            return fd
        # It came before another file took its place.
        self._session.forget(self.path)
        fd = self._session.fd(self.path, self.size, pin)
        if os.fstat(fd.number).st_ino != self._inode:
            raise Unavailable(f"{self.path} was replaced on this host while it was opened", "open the artifact again")
        return fd


class Artifact:
    """An open artifact. The daemon keeps its files for as long as this, or any of its files, is open: close it,
    or leave its `with` block, only when its tensors are no longer in use."""

    def __init__(self, session: Session, ref: str, opened: Mapping[str, Any]):
        self._session = session
        self._index: Dict[str, List[TensorInfo]] = {}
        self._tensors: Dict[bool, Tensors] = {}
        self._private: Any = weakref.WeakValueDictionary()
        digest = opened.get("digest")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ProtocolError(f"the daemon opened {ref} without a digest")
        # It may be shortened.
        if "@" in ref and not digest.startswith(ref.split("@", 1)[1]):
            raise ProtocolError(f"the daemon opened {digest} for {ref}")
        self.ref = str(opened.get("ref", ref))
        """The reference, as the daemon understood it."""
        self.digest = digest
        """`sha256:...` of the manifest: the artifact's identity."""
        # A daemon that does not know that it need not be told tells it.
        contract = opened.get("contract")
        self._contract: Optional[Dict[str, Any]] = contract if isinstance(contract, dict) else None
        self.files: Mapping[str, File] = MappingProxyType(_files(session, opened.get("files"), ref))
        """All files by path, in loading order. Needs no file descriptor."""

    @property
    def contract(self) -> Dict[str, Any]:
        """What the daemon read from the files: architecture, precision, tokenizer, tensors with their hashes. Of a
        contract over 4 MiB, some 20,000 tensors, the daemon leaves the list of tensors out. It is asked for when it is
        first looked at, so neither after `close` nor in a forked process, and kept from then on."""
        if self._contract is None:
            contract = self._session.contract()
            if not isinstance(contract, dict):
                raise ProtocolError(f"the daemon sent a contract of {self.ref} that is not a table")
            self._contract = contract
        return self._contract

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._session.closed else ""
        return f"<weighlock.Artifact {self.ref} {self.digest[:19]}: {len(self.files)} files{state}>"

    def __getitem__(self, path: str) -> File:
        try:
            return self.files[path]
        except KeyError:
            raise NotFound(f"no file {path!r} in {self.ref}", "`artifact.paths()` lists its files") from None

    def __contains__(self, path: object) -> bool:
        return path in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def close(self) -> None:
        """Ends the lease and closes all descriptors. Mappings, arrays and file objects that exist stay usable."""
        self._session.close()

    @property
    def complete(self) -> bool:
        """Whether all files are known to be on this host: always, unless it was opened with `partial`."""
        if not self._session.complete and all(file._has(0, file.size) for file in self.files.values()):
            self._session.complete = True
        return self._session.complete

    def wait(self, path: Optional[str] = None, start: int = 0, end: Optional[int] = None) -> None:
        """Returns once bytes `start` up to `end` of a file (all of it, when not given; all files, when `path` is not
        given) are on this host, and has them fetched before others. See `File.wait`."""
        for file in self.files.values() if path is None else [self[path]]:
            file.wait(start, end)

    def stream(
        self, *paths: str, raw: bool = False, progress: Optional[Callable[[Progress], None]] = None
    ) -> Stream:
        """All tensors of the artifact (or of the files at `paths`) as `(name, tensor)`, each as soon as all of it is
        on this host. Tensors are the arrays that `tensors` gives, or memoryviews where NumPy is not installed.

        Raises, while it goes on, FormatError for a bad header, Invalid when two files have a tensor of one name,
        Unavailable when nobody has what is missing; streaming again goes on from what is here.
        """
        chosen = list(dict.fromkeys(paths)) if paths else self._weights()
        self._check_formats(chosen)
        return Stream(self, chosen, raw, progress)

    def paths(self) -> List[str]:
        """Paths of all files, in loading order: configuration and tokenizer first, then weights."""
        return list(self.files)

    def json(self, path: str) -> Any:
        """One file, parsed as JSON."""
        try:
            return json.loads(self[path].read())
        except (ValueError, RecursionError) as error:
            raise Invalid(f"{path} of {self.ref} is not JSON: {error}") from None

    def walk(self, paths: Optional[Iterable[str]] = None) -> Iterator[File]:
        """The files (all, or those at `paths`), with their descriptors asked for in batches. For reading many small
        files: one round trip for 64 of them, and never more than 256 descriptors held."""
        files = [self[path] for path in (self.files if paths is None else paths)]
        for start in range(0, len(files), FDS_PER_FRAME_MAX):
            batch = files[start : start + FDS_PER_FRAME_MAX]
            self._session.fetch({file.path: file.size for file in batch})
            yield from batch

    def tensors(self, *paths: str, raw: bool = False) -> Tensors:
        """All tensors of the artifact (or of the files at `paths`) as a lazy mapping from name to a read-only
        zero-copy NumPy array, over all safetensors shards and GGUF files. See `Tensors` for BF16, F8 and `raw`.

        Raises FormatError for a file with a bad header, Invalid when two files have a tensor of one name.
        """
        if not paths:
            if raw not in self._tensors:
                self._tensors[raw] = self._make(self._weights(), raw)
            return self._tensors[raw]
        self._check_formats(paths)
        return self._make(list(dict.fromkeys(paths)), raw)

    def tensor_info(self, name: Optional[str] = None) -> Any:
        """`TensorInfo` of one tensor, or of all of them by name."""
        tensors = self.tensors()
        return {each: tensors.info(each) for each in tensors} if name is None else tensors.info(name)

    def tensor_bytes(self, name: str) -> memoryview:
        """One tensor's bytes as its file holds them: a read-only view, no copy. Needs no NumPy."""
        return self.tensors().bytes(name)

    def torch(self, name: str) -> Any:
        """One tensor for torch, without a copy: private copy-on-write memory, so that writing to it neither warns
        nor reaches the file. GGUF block types come as uint8. Needs torch, not NumPy."""
        info = self.tensors().info(name)
        file = self[info.path]
        # Whole pages: writing to one copies it, and what was not ready yet would be lost from the copy.
        page = memory_map.PAGESIZE
        file.wait(info.offset // page * page, min(file.size, -(-(info.offset + info.nbytes) // page) * page))
        return torch_tensor(info, self._private_map(info.path))

    def _private_map(self, path: str) -> Any:
        # One private mapping per file for as long as a tensor uses it; while a file is on its way another may take its
        # place, in which alone more bytes appear.
        file = self[path]
        key = (path, file._inode)
        mapping = self._private.get(key)
        if mapping is None:
            mapping = file._private_mapping()
            if isinstance(mapping, memory_map.mmap) and file._inode == key[1]:
                self._private[key] = mapping
        return mapping

    def _header(self, file: File) -> List[TensorInfo]:
        """The tensors of one file; waits for its header, which says in steps how long it is."""
        ready = file.size if self.complete else min(file.size, _HEAD_BYTES)
        while True:
            file.wait(0, ready)
            try:
                return self._parse(file, ready)
            except HeaderIncomplete as stop:
                ready = min(file.size, max(stop.need, ready + ready // 2))

    def _parse(self, file: File, ready: int) -> List[TensorInfo]:
        return _PARSERS[_suffix(file.path)](file._mapping(), file.path, ready)

    def _check_formats(self, paths: Iterable[str]) -> None:
        for path in paths:
            if _suffix(self[path].path) not in _PARSERS:
                raise Invalid(f"{path} is neither a safetensors nor a GGUF file")

    def _weights(self) -> List[str]:
        return [path for path in self.files if _suffix(path) in _PARSERS]

    def _make(self, paths: List[str], raw: bool) -> Tensors:
        for file in self.walk([path for path in paths if path not in self._index]):
            self._index[file.path] = self._header(file)
        index = merge([self._index[path] for path in paths])
        return Tensors({path: self.files[path] for path in paths}, index, raw)


class _Reader(io.RawIOBase):
    """Reads one descriptor by position, so that nobody else's offset matters."""

    def __init__(self, fd: Fd, path: str, size: int):
        self._fd: Optional[Fd] = fd
        self._size = size
        self._at = 0
        self.name = path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._fd is None:
            raise ValueError("read of a closed file")
        count = os.preadv(self._fd.number, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._fd is None:
            raise ValueError("seek of a closed file")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._fd = None
        super().close()


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _progress(frame: Mapping[str, Any]) -> Progress:
    def count(key: str) -> int:
        value = frame.get(key)
        return value if type(value) is int and value >= 0 else 0

    return Progress(str(frame.get("phase", "")), count("done_bytes"), count("total_bytes"), count("sources"))


def _files(session: Session, entries: Any, ref: str) -> Dict[str, File]:
    if not isinstance(entries, list):
        raise ProtocolError(f"the daemon opened {ref} without a list of files")
    files: Dict[str, File] = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        texts: List[Any] = [entry.get(key) for key in ("path", "kind", "blake3", "sha256")]
        size = entry.get("size")
        if not all(isinstance(text, str) for text in texts) or type(size) is not int or size < 0:
            raise ProtocolError(f"the daemon opened {ref} with a file entry that has no path, kind, size or hashes")
        path, kind, blake3, sha256 = texts
        if not _is_safe(path) or path in files:
            raise ProtocolError(
                f"the daemon opened {ref} with the path {path[:200]!r}, which is unsafe or stands twice"
            )
        files[path] = File(session, path, size, kind, blake3, sha256)
    return files


def _is_safe(path: str) -> bool:
    # People join these paths to directories.
    parts = path.split("/")
    return "\0" not in path and "\\" not in path and not any(part in ("", ".", "..") for part in parts)
