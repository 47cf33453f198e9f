"""Memory that ends at an inaccessible page, so that one byte too far is a SIGSEGV.

The address sanitizer sees nothing inside an mmap'ed ring or memory of cffi; the processor
sees this in every build.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from pktstun.kernel._closing import Closing
from pktstun.kernel._ffi import CData, ffi

_libc = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


class Guarded(Closing):
    """A buffer of up to `capacity` bytes with an inaccessible page on either side."""

    def __init__(self, capacity: int) -> None:
        page = mmap.PAGESIZE
        self._size = -(-capacity // page) * page
        self._map = mmap.mmap(-1, self._size + 2 * page)
        self._bytes = (ctypes.c_char * len(self._map)).from_buffer(self._map)
        base = ctypes.addressof(self._bytes)
        self._start = base + page
        for guard in (base, self._start + self._size):
            if _libc.mprotect(ctypes.c_void_p(guard), page, _PROT_NONE):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        """Give the memory back."""
        del self._bytes
        self._map.close()

    def at_end(self, data: bytes) -> CData:
        """Copy data so that its end meets the guard; return `uint8_t *` to its start."""
        address = self._start + self._size - len(data)
        ctypes.memmove(address, data, len(data))
        return ffi.cast("uint8_t *", address)

    def at_start(self, data: bytes) -> CData:
        """Copy data so that its start meets the guard; return `uint8_t *` to its start."""
        ctypes.memmove(self._start, data, len(data))
        return ffi.cast("uint8_t *", self._start)
