"""safetensors files larger than memory: written in a stream, read through a memory map.

The files are plain safetensors. Two things the stock library does not do are needed here. Its
writer wants all tensors in memory. Its PyTorch reader maps the file private and writable, which
the kernel counts against memory: a file larger than memory does not open. So this module appends
rows to one spool file per tensor and joins them behind a header, and maps files read-only.
"""

import ctypes
import hashlib
import json
import math
import mmap
import os
import struct
import warnings
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sma_core.errors import DatasetError

_DTYPES = {"F32": torch.float32, "I32": torch.int32, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_COPY_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_MEND = "copy the data set again, or prepare it again"


class TensorSpool:
    """A tensor that grows along its first axis, on disk.

    Parameters
    ----------
    path : Path
        File that holds the rows until `join` copies them.
    dtype : torch.dtype
        float32, int32 or int64.
    tail : tuple of int
        Shape of one row.
    """

    def __init__(self, path: Path, dtype: torch.dtype, tail: tuple[int, ...] = ()) -> None:
        self.path = path
        self.dtype = dtype
        self.tail = tail
        self.length = 0
        self._file = path.open("wb")

    def append(self, rows: Tensor) -> None:
        """Add rows of shape ``[T, *tail]``."""
        rows = rows.to(self.dtype).contiguous()
        self._file.write(ctypes.string_at(rows.data_ptr(), rows.nbytes))
        self.length += rows.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes appended so far."""
        return self.length * math.prod(self.tail) * self.dtype.itemsize

    def close(self) -> None:
        """Flush to disk; nothing can be appended after."""
        self._file.close()


def join(spools: dict[str, TensorSpool], path: Path) -> str:
    """Write the spooled tensors as one safetensors file and delete the spools.

    Returns
    -------
    str
        SHA-256 of the file, in hex.
    """
    # Widest dtype first: behind a header padded to 8 bytes, every tensor starts aligned.
    names = sorted(spools, key=lambda name: (-spools[name].dtype.itemsize, name))
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in names:
        spool = spools[name]
        begin, end = end, end + spool.nbytes
        header[name] = {
            "dtype": _NAMES[spool.dtype],
            "shape": [spool.length, *spool.tail],
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    digest = hashlib.sha256()
    with path.open("wb") as out:
        _write(out, struct.pack("<Q", len(encoded)) + encoded, digest)
        for name in names:
            spools[name].close()
            with spools[name].path.open("rb") as rows:
                while chunk := rows.read(_COPY_BYTES):
                    _write(out, chunk, digest)
            spools[name].path.unlink()
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _write(out: IO[bytes], chunk: bytes, digest: "hashlib._Hash") -> None:
    out.write(chunk)
    digest.update(chunk)


class TensorFile:
    """A safetensors file behind a read-only memory map: opening it reads its header only.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DatasetError
        When the file is absent, truncated or not what its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header, start = _read_header(file, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DatasetError(f"{path} is missing: {_MEND}") from error
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror}): {_MEND}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{path} is damaged or cut short: {_MEND}") from error
        self._tensors = {name: self._view(start, entry) for name, entry in header.items()}

    def _view(self, start: int, entry: dict) -> Tensor:
        shape, dtype = entry["shape"], _DTYPES[entry["dtype"]]
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():
            # The map is read-only and nothing outside this class holds a view of it: see `read`.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            offset = start + entry["data_offsets"][0]
            flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        return flat.view(shape)

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the dtype and shape of every tensor, by name."""
        return {name: (view.dtype, tuple(view.shape)) for name, view in self._tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Copy rows `start` to `stop` of a tensor; only their pages are read from disk."""
        # A copy, since writing to a view of a read-only map would kill the process.
        return self._tensors[name][start:stop].clone()


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, dict], int]:
    """Return the entries of the header and where the data starts; any exception means damage."""
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError("header length")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if not all(type(extent) is int and extent >= 0 for extent in entry["shape"]):
            raise ValueError("shape")
        nbytes = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        if begin != end or stop - begin != nbytes:
            raise ValueError("offsets")
        end = stop
    if size != 8 + length + end:
        raise ValueError("size")
    return header, 8 + length
