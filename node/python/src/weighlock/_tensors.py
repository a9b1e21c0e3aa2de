"""Tensors of an artifact's weights files: what the headers say, and views of the mapped bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Tuple

from ._errors import FormatError, Invalid, MissingDependency, NotFound

if TYPE_CHECKING:
    from ._artifact import File

TENSORS_MAX = 2_000_000
"""Most tensors in one file."""
ELEMENTS_MAX = 1 << 63
"""Most elements in one tensor, also of any leading part of its shape (as the product of dimensions is built)."""


class TensorInfo(NamedTuple):
    """What a header says of one tensor, checked against the file's length."""

    name: str
    """Name as the file gives it."""
    dtype: str
    """Element or block type as the file names it: `F32`, `BF16`, `Q4_K`."""
    shape: Tuple[int, ...]
    """Dimensions in elements, outermost first (GGUF order is reversed on reading)."""
    path: str
    """The file that holds it."""
    offset: int
    """First byte, from the start of the file."""
    nbytes: int
    """Length in bytes."""


class Dtype(NamedTuple):
    """How a type lies in memory: `bits` per element, and how NumPy, ml_dtypes and torch call it, where they do."""

    bits: int
    numpy: str = ""
    ml_dtypes: str = ""
    torch: str = ""
    raw: str = "u1"


DTYPES: Dict[str, Dtype] = {
    "BOOL": Dtype(8, "?", torch="bool"),
    "U8": Dtype(8, "u1", torch="uint8"),
    "I8": Dtype(8, "i1", torch="int8"),
    "U16": Dtype(16, "<u2", torch="uint16"),
    "I16": Dtype(16, "<i2", torch="int16"),
    "U32": Dtype(32, "<u4", torch="uint32"),
    "I32": Dtype(32, "<i4", torch="int32"),
    "U64": Dtype(64, "<u8", torch="uint64"),
    "I64": Dtype(64, "<i8", torch="int64"),
    "F16": Dtype(16, "<f2", torch="float16"),
    "F32": Dtype(32, "<f4", torch="float32"),
    "F64": Dtype(64, "<f8", torch="float64"),
    "C64": Dtype(64, "<c8", torch="complex64"),
    "BF16": Dtype(16, ml_dtypes="bfloat16", torch="bfloat16", raw="<u2"),
    "F8_E4M3": Dtype(8, ml_dtypes="float8_e4m3fn", torch="float8_e4m3fn"),
    "F8_E5M2": Dtype(8, ml_dtypes="float8_e5m2", torch="float8_e5m2"),
    "F8_E8M0": Dtype(8, ml_dtypes="float8_e8m0fnu", torch="float8_e8m0fnu"),
    "F8_E4M3FNUZ": Dtype(8, ml_dtypes="float8_e4m3fnuz", torch="float8_e4m3fnuz"),
    "F8_E5M2FNUZ": Dtype(8, ml_dtypes="float8_e5m2fnuz", torch="float8_e5m2fnuz"),
    # Several elements to a byte: no element view exists, only the packed bytes.
    "F4": Dtype(4),
    "F6_E2M3": Dtype(6),
    "F6_E3M2": Dtype(6),
}
"""Types with one element after the other. The names that are not here are GGUF block types."""


class HeaderIncomplete(Exception):
    """A header reaches past the bytes that are ready; `need` of them, from the start, would take it further."""

    def __init__(self, need: int):
        super().__init__(need)
        self.need = need


def elements(shape: Tuple[int, ...], where: str) -> int:
    """Number of elements of `shape`. Refuses what no file can hold before the numbers grow without bound."""
    count = 1
    for dim in shape:
        count *= dim
        if count > ELEMENTS_MAX:
            raise FormatError(f"{where} has a shape with too many elements")
    return count


class Tensors(Mapping):
    """Lazy mapping from tensor name to a read-only NumPy array over the mapped file: no copy is made, and pages
    are read when they are touched. Arrays stay valid after the artifact is closed. While a file is on its way here,
    asking for a tensor waits for its bytes.

    BF16 and the F8 types come as ml_dtypes types when that package is installed, else asking for one raises
    MissingDependency. With `raw` they always come as uint16 and uint8 of the tensor's shape. F4 and F6 pack several
    elements into a byte and come only with `raw`, as a flat uint8 array. GGUF block types always come as uint8 of
    shape (..., bytes per row).
    """

    def __init__(self, files: Dict[str, File], index: Dict[str, TensorInfo], raw: bool):
        self._files = files
        self._index = index
        self._raw = raw
        # Holds the mappings that were used, so that each file is mapped once while this lives.
        self._maps: Dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        info = self.info(name)
        numpy = _numpy()
        dtype, shape = self._layout(info, numpy)
        if info.nbytes == 0:
            self._files[info.path].wait(info.offset, info.offset)
            array = numpy.empty(shape, dtype)
            array.flags.writeable = False
            return array
        count = info.nbytes // dtype.itemsize
        return numpy.frombuffer(self._map(info), dtype, count, info.offset).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        return f"<weighlock.Tensors: {len(self._index)} in {len(self._files)} files>"

    def info(self, name: str) -> TensorInfo:
        """What the header says of one tensor. Raises NotFound."""
        try:
            return self._index[name]
        except KeyError:
            raise NotFound(f"no tensor {name!r} in this artifact", _near(name, self._index)) from None

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes as the file holds them: a read-only view of the mapping. Needs no NumPy."""
        info = self.info(name)
        if info.nbytes == 0:
            return memoryview(b"")
        return memoryview(self._map(info))[info.offset : info.offset + info.nbytes]

    def _map(self, info: TensorInfo) -> Any:
        # Not from the table: while a file is on its way another may take its place.
        mapping = self._files[info.path]._ready_mapping(info.offset, info.offset + info.nbytes)
        self._maps[info.path] = mapping
        return mapping

    def _layout(self, info: TensorInfo, numpy: Any) -> Tuple[Any, Tuple[int, ...]]:
        known = DTYPES.get(info.dtype)
        if known is None:
            rows = elements(info.shape[:-1], info.name)
            return numpy.dtype("u1"), (*info.shape[:-1], info.nbytes // rows if rows else 0)
        if known.numpy:
            return numpy.dtype(known.numpy), info.shape
        if known.bits < 8:
            if not self._raw:
                raise Invalid(
                    f"tensor {info.name!r} is {info.dtype}: several elements to a byte, which NumPy cannot view",
                    "`tensors(raw=True)` gives the packed bytes",
                )
            return numpy.dtype("u1"), (info.nbytes,)
        if self._raw:
            return numpy.dtype(known.raw), info.shape
        try:
            import ml_dtypes

            return numpy.dtype(getattr(ml_dtypes, known.ml_dtypes)), info.shape
        except (ImportError, AttributeError):
            raise MissingDependency(
                f"tensor {info.name!r} is {info.dtype}, which NumPy has only with a recent ml_dtypes",
                "`pip install -U ml_dtypes`, or `tensors(raw=True)` for the bits as unsigned integers",
            ) from None


def torch_tensor(info: TensorInfo, memory: Any) -> Any:
    """The tensor as torch has it, over `memory`: a writable buffer with the whole file. No copy is made."""
    try:
        import torch
    except ImportError:
        raise MissingDependency("torch is not installed", "`pip install torch`, or use `tensors()`") from None
    known = DTYPES.get(info.dtype)
    if known is None:
        rows = elements(info.shape[:-1], info.name)
        dtype, shape = torch.uint8, (*info.shape[:-1], info.nbytes // rows if rows else 0)
    elif known.bits < 8:
        dtype, shape = torch.uint8, (info.nbytes,)
    else:
        dtype, shape = getattr(torch, known.torch, None), info.shape
        if dtype is None:
            raise MissingDependency(
                f"tensor {info.name!r} is {info.dtype}, which this torch ({torch.__version__}) does not have",
                "`pip install -U torch`",
            )
    if info.nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    count = info.nbytes // dtype.itemsize
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=info.offset).reshape(shape)


def merge(per_file: List[List[TensorInfo]]) -> Dict[str, TensorInfo]:
    """One index over several files. Raises Invalid when two of them have a tensor of one name."""
    index: Dict[str, TensorInfo] = {}
    for tensors in per_file:
        for info in tensors:
            other = index.setdefault(info.name, info)
            if other is not info:
                raise Invalid(
                    f"tensor {info.name!r} is both in {other.path} and in {info.path}",
                    f"name the files: tensors({other.path!r})",
                )
    return index


def _numpy() -> Any:
    try:
        import numpy

        return numpy
    except ImportError:
        raise MissingDependency(
            "NumPy is not installed", "`pip install numpy`, or use `tensor_bytes(name)`, which needs nothing"
        ) from None


def _near(name: object, names: Any) -> str:
    import difflib

    close = difflib.get_close_matches(str(name), list(names)[:10_000], 1)
    return f"did you mean {close[0]!r}?" if close else "`artifact.tensor_info()` lists its tensors"
