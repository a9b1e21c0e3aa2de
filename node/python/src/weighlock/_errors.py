"""What can go wrong, one class per thing that a caller may want to handle."""

from __future__ import annotations

import builtins
from typing import Optional


class Error(Exception):
    """Base of all errors of this package.

    `message` says what is wrong and where, `hint` (or None) what to do next, `code` is the loader protocol's
    code when the daemon sent the error, else None.
    """

    def __init__(self, message: str, hint: Optional[str] = None, code: Optional[str] = None):
        super().__init__(message, hint, code)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class NotFound(Error, KeyError):
    """No such artifact, file or tensor."""


class NotMember(Error):
    """This host is not (or no longer) a member of the cluster."""


class Unavailable(Error):
    """The artifact is known, but no host that can be reached has its bytes now. Trying again may help."""


class Invalid(Error, ValueError):
    """The request or the data has the wrong form."""


class Refused(Error):
    """The daemon may not hand this out: no evidence, revoked, or a file that is not in the manifest."""


class Internal(Error):
    """The daemon failed; its log says why."""


class FormatError(Invalid):
    """A safetensors or GGUF file whose header is not to be trusted."""


class ConnectionError(Error, builtins.ConnectionError):  # noqa: A001 - the builtin is its base
    """No daemon answers, or it went away."""

    denied = False
    """Whether there is something that this process may not use, so that waiting does not help."""


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001 - the builtin is its base
    """The daemon said nothing for as long as the caller was willing to wait."""


class ProtocolError(Error):
    """The other end does not speak the loader protocol; the connection is closed."""


class Closed(Error, ValueError):
    """The artifact was closed, or was opened in another process (see fork in the README)."""


class MissingDependency(Error, ImportError):
    """An optional package (NumPy, ml_dtypes, torch) is needed for what was asked."""


_BY_CODE = {
    "not_found": NotFound,
    "not_member": NotMember,
    "unavailable": Unavailable,
    "invalid": Invalid,
    "refused": Refused,
    "internal": Internal,
}


def from_frame(frame: dict) -> Error:
    """The exception for an error frame; a code from a newer daemon gives the base class."""
    code = frame.get("code")
    message = frame.get("message")
    hint = frame.get("hint")
    kind = _BY_CODE.get(code, Error) if isinstance(code, str) else Error
    return kind(
        message if isinstance(message, str) and message else f"the daemon reports an error ({code})",
        hint if isinstance(hint, str) else None,
        code if isinstance(code, str) else None,
    )
