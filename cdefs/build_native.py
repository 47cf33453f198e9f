"""Build script of `pktstun._native`: cffi in API mode, with the limited API.

cffi executes this file (it is not imported, and must not import pktstun) with the
project's root as the working directory. Two kinds of declarations go into one module:

* our own functions and structs, from `*.cdef.h`. The C headers include the same files, so
  that compiler and cffi cannot disagree. Everything but `linux.cdef.h` is of this kind.
* the kernel's and the C library's, from `linux.cdef.h`, with `...` where the compiler fills
  in values and layouts.

Paths given to setuptools are relative to the root, as it asks for; `depends` makes it
rebuild after an edit and carries every file into the source distribution.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
# Later files use the types of earlier ones.
DECLARATIONS = ("linux", "verdict", "packet", "reply", "route", "stun", "ring", "engine", "load")

PREAMBLE = """
#include <errno.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>

/* Newer than the headers of some supported distributions; the values are kernel ABI
 * (include/uapi/linux/if_packet.h, include/uapi/asm-generic/socket.h). */
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif
#ifndef PACKET_FANOUT_FLAG_IGNORE_OUTGOING
#define PACKET_FANOUT_FLAG_IGNORE_OUTGOING 0x4000
#endif

/* The C library has no function for it. */
static int pktstun_bpf(int command, void *attributes, unsigned int size)
{
    return (int)syscall(__NR_bpf, command, attributes, size);
}

#include "engine.h"
#include "load.h"
#include "reply.h"
"""

ffibuilder = FFI()
for name in DECLARATIONS:
    ffibuilder.cdef((HERE / f"{name}.cdef.h").read_text(encoding="utf-8"))


def _relative(*patterns: str) -> list[str]:
    return sorted(f"cdefs/{path.name}" for pattern in patterns for path in HERE.glob(pattern))


ffibuilder.set_source(
    "pktstun._native",
    PREAMBLE,
    sources=_relative("*.c"),
    depends=_relative("*.h", "*.py"),
    include_dirs=["cdefs"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu17", "-fvisibility=hidden", "-fstack-protector-strong"],
    py_limited_api=True,
)
