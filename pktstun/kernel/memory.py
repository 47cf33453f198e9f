"""Memory that processes share, in a file without a name (memfd_create(2)).

Theory of operation: child processes inherit the mapping and see what the others write. The file
itself can be handed on to another program, which maps it again.
"""

from __future__ import annotations

import mmap
import os

from ._closing import Closing
from ._ffi import CData, ffi


class SharedMemory(Closing):
    """Zeroed memory at a page's boundary.

    Args:
        name: for those who look at the process's maps.
        size: bytes.
        file: the memory file of another `SharedMemory`, to go on with; it is this object's from
            then on. None for a new one.

    Raises:
        ValueError: the file is of another size.
    """

    def __init__(self, name: str, size: int, file: int | None = None) -> None:
        if file is None:
            file = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(file, size)
        elif os.fstat(file).st_size != size:
            raise ValueError(f"{os.fstat(file).st_size} bytes and not {size}")
        self._file = file
        self._map = mmap.mmap(file, size)
        self._base = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)

    def at(self, offset: int, ctype: str) -> CData:
        """Return a pointer of this type to what begins at an offset."""
        return ffi.cast(ctype, self._base + offset)

    def fileno(self) -> int:
        """Return the descriptor of the file, -1 when closed."""
        return self._file

    def close(self) -> None:
        """Give up the mapping and the file; pointers must not be used any more."""
        if self._file != -1:
            ffi.release(self._base)
            self._map.close()
            os.close(self._file)
            self._file = -1


def whole_pages(size: int) -> int:
    """Return the bytes of as many pages as it takes."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
