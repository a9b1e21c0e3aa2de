"""Open verified model artifacts from the local Weighlock daemon, with zero copies.

For example:

    with weighlock.open("acme/support-bot:1.4.0") as artifact:
        config = artifact.json("config.json")
        weights = artifact.tensors()  # lazy, read-only NumPy views of mapped files
        print(artifact.digest, weights["model.embed_tokens.weight"].shape)

or, while it is still on its way to this host:

    with weighlock.stream("acme/support-bot:1.4.0") as arriving:
        for name, tensor in arriving:
            model.load(name, tensor)

or whatever a channel runs, now and from then on:

    for head in weighlock.watch("acme/support-bot:production"):
        print(head.digest, head.rolled_back)
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Union

from ._artifact import Artifact, File, Progress, open, stream
from ._errors import (
    Closed,
    ConnectionError,
    Error,
    FormatError,
    Internal,
    Invalid,
    MissingDependency,
    NotFound,
    NotMember,
    ProtocolError,
    Refused,
    TimeoutError,
    Unavailable,
)
from ._socket import Session, connect
from ._stream import Stream
from ._tensors import TensorInfo, Tensors
from ._watch import Head, Watch, watch

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Closed",
    "ConnectionError",
    "Error",
    "File",
    "FormatError",
    "Head",
    "Internal",
    "Invalid",
    "MissingDependency",
    "NotFound",
    "NotMember",
    "Progress",
    "ProtocolError",
    "Refused",
    "Stream",
    "TensorInfo",
    "Tensors",
    "TimeoutError",
    "Unavailable",
    "Watch",
    "hello",
    "open",
    "stream",
    "watch",
]


def hello(socket: Union[str, os.PathLike, None] = None, timeout: Optional[float] = 5.0) -> Dict[str, Any]:
    """What the daemon says of itself: `protocol` (int) and `version` (text). Also a way to see that one is there.

    Raises ConnectionError when none is; `timeout` in seconds.
    """
    session = Session(connect(socket, timeout))
    try:
        return session.hello()
    finally:
        session.close()
