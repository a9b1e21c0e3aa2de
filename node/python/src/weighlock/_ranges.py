"""Which bytes of a file are ready: a set of ranges."""

from __future__ import annotations

import bisect
from typing import Any, Iterable, List, Tuple

from ._errors import ProtocolError


class Ranges:
    """Bytes as ranges that neither overlap nor touch. Not thread-safe."""

    __slots__ = ("_starts", "_ends")

    def __init__(self) -> None:
        self._starts: List[int] = []
        self._ends: List[int] = []

    def add(self, start: int, end: int) -> None:
        """Adds `start` up to `end`."""
        if start >= end:
            return
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of `start` up to `end` is in the set; nothing always is."""
        if start >= end:
            return True
        at = bisect.bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]

    def prefix(self) -> int:
        """How many bytes are ready from the start on."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def __iter__(self) -> Any:
        return iter(zip(self._starts, self._ends))


def checked(value: Any, size: int, path: str) -> List[Tuple[int, int]]:
    """Ranges as a frame has them. Raises ProtocolError for what is not inside the file."""
    if isinstance(value, list):
        pairs = [tuple(pair) if isinstance(pair, list) else () for pair in value]
        if all(_fits(pair, size) for pair in pairs):
            return pairs  # type: ignore[return-value]
    raise ProtocolError(f"the daemon declared ranges of {path!r} that are not inside its {size} bytes")


def _fits(pair: Iterable[Any], size: int) -> bool:
    numbers = list(pair)
    if len(numbers) != 2 or not all(type(number) is int for number in numbers):
        return False
    return 0 <= numbers[0] < numbers[1] <= size
