"""`python -m weighlock REF`: lists the files and tensors of an artifact."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import List, Optional

from . import Artifact, Error, Progress, TensorInfo, __version__
from . import open as open_artifact
from ._errors import ConnectionError, Invalid, NotFound, NotMember, Refused, TimeoutError, Unavailable

# The table of exit codes in the README of Weighlock; the first that fits counts.
_EXIT_CODES = (
    (Invalid, 2),
    (NotFound, 4),
    ((Refused, NotMember), 5),
    ((Unavailable, ConnectionError, TimeoutError), 6),
)


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command; 0 when it worked, else the exit code that `weighlock` has for the same error."""
    parser = argparse.ArgumentParser(
        prog="python -m weighlock", description="List the files and tensors of an artifact of the local daemon."
    )
    parser.add_argument("ref", metavar="REF", help="ns/name:tag, ns/name:stage or ns/name@sha256:...")
    parser.add_argument("--socket", metavar="PATH", help="loader socket (default: looked for, see WEIGHLOCK_SOCKET)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up on a silent daemon after this long")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--version", action="version", version=f"weighlock {__version__}")
    options = parser.parse_args(arguments)
    try:
        report = _progress if sys.stderr.isatty() else None
        with open_artifact(options.ref, options.socket, options.timeout, report) as artifact:
            if report:
                print("\r\033[K", end="", file=sys.stderr)
            _print_json(artifact) if options.json else _print(artifact)
            sys.stdout.flush()
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return _exit_code(error)
    except BrokenPipeError:
        # The reader (`head`) has seen enough; keep the interpreter from complaining at its own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _exit_code(error: Error) -> int:
    if error.code == "integrity":
        return 7
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return 1


def _progress(at: Progress) -> None:
    share = 100 * at.done_bytes / at.total_bytes if at.total_bytes else 0
    print(f"\r\033[K{at.phase} {share:.0f} % of {_size(at.total_bytes)}, {at.sources} sources", end="", file=sys.stderr)


def _print(artifact: Artifact) -> None:
    print(f"{artifact.ref}  {artifact.digest}")
    for file in artifact.files.values():
        print(f"  {_size(file.size):>10}  {file.kind:<15}  {file.blake3[:16]}  {_plain(file.path)}")
    infos = _infos(artifact)
    if infos:
        print(f"{len(infos)} tensors")
    for info in infos:
        shape = " x ".join(map(str, info.shape)) or "scalar"
        print(f"  {_size(info.nbytes):>10}  {info.dtype:<8}  {_plain(info.name)}  ({shape})")


def _print_json(artifact: Artifact) -> None:
    report = {
        "schema_version": 1,
        "ref": artifact.ref,
        "digest": artifact.digest,
        "files": [
            {"path": f.path, "kind": f.kind, "size": f.size, "blake3": f.blake3, "sha256": f.sha256}
            for f in artifact.files.values()
        ],
        "tensors": [info._asdict() for info in _infos(artifact)],
    }
    print(json.dumps(report))


def _infos(artifact: Artifact) -> List[TensorInfo]:
    # File by file: two quantizations side by side have the same tensor names.
    found = []
    for path in artifact.paths():
        if path.lower().endswith((".safetensors", ".gguf")):
            tensors = artifact.tensors(path)
            found += [tensors.info(name) for name in tensors]
    return found


def _plain(text: str) -> str:
    # Names come from files that others made: no terminal escapes.
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


if __name__ == "__main__":
    sys.exit(main())
