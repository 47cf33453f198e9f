"""The seam to the compiled module: the only place that imports it.

`ffi` and `lib` are cffi's. What they return is untyped, so everything around them is kept
thin and gives typed values back. `check` turns the C convention (-1 and errno) into OSError.
"""

from __future__ import annotations

import os
import socket
from typing import Any, TypeAlias

from pktstun.errors import NativeMissingError

try:
    from pktstun._native import ffi, lib
except ImportError as error:
    raise NativeMissingError(
        f"the compiled module pktstun._native cannot be imported ({error}); build it with "
        "'pip install -e .' in a checkout (it needs a C compiler and Python's headers), or "
        "install a wheel for this platform. The codec, pktstun.stun, works without it."
    ) from error

__all__ = ["CData", "check", "ffi", "lib", "set_buffer", "set_option"]

# <asm-generic/socket.h>; the socket module does not name them.
_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}


CData: TypeAlias = Any  # cffi has no static types; the name says what is meant


def check(result: int, what: str) -> int:
    """Return the result of a C call, or raise the OSError of its errno if it is -1."""
    if result == -1:
        raise OSError(ffi.errno, f"{what}: {os.strerror(ffi.errno)}")
    return result


def set_option(sock: socket.socket, level: int, option: int, value: CData) -> None:
    """Set a socket option to a C struct, which the caller keeps alive."""
    sock.setsockopt(level, option, bytes(ffi.buffer(value)))


def set_buffer(sock: socket.socket, which: int, size: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF, beyond the host's limit where CAP_NET_ADMIN allows it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _FORCE[which], size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, which, size)
