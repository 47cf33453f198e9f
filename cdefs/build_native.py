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
DECLARATIONS = (
    *("linux", "verdict", "packet", "reply", "route", "stun", "ring", "limiter", "engine", "load"),
)

PREAMBLE = """
#include <errno.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>

/* Newer than the headers of some supported distributions; the values are kernel ABI
 * (include/uapi/linux/if_packet.h, include/uapi/asm-generic/socket.h). */
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif
#ifndef PACKET_FANOUT_FLAG_IGNORE_OUTGOING
#define PACKET_FANOUT_FLAG_IGNORE_OUTGOING 0x4000
#endif
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

#if defined(__x86_64__) && !defined(__ILP32__)
#define PKTSTUN_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define PKTSTUN_AUDIT_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define PKTSTUN_AUDIT_ARCH AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
#define PKTSTUN_AUDIT_ARCH AUDIT_ARCH_PPC64LE
#elif defined(__s390x__)
#define PKTSTUN_AUDIT_ARCH AUDIT_ARCH_S390X
#else
#define PKTSTUN_AUDIT_ARCH 0
#endif

/* Newer architectures have one call where older ones have several. */
#define PKTSTUN_NO_CALL 0x7FFFFFFF
#ifndef __NR_access
#define __NR_access PKTSTUN_NO_CALL
#endif
#ifndef __NR_clock_nanosleep
#define __NR_clock_nanosleep PKTSTUN_NO_CALL
#endif
#ifndef __NR_epoll_pwait2
#define __NR_epoll_pwait2 PKTSTUN_NO_CALL
#endif
#ifndef __NR_epoll_wait
#define __NR_epoll_wait PKTSTUN_NO_CALL
#endif
#ifndef __NR_faccessat
#define __NR_faccessat PKTSTUN_NO_CALL
#endif
#ifndef __NR_faccessat2
#define __NR_faccessat2 PKTSTUN_NO_CALL
#endif
#ifndef __NR_getcwd
#define __NR_getcwd PKTSTUN_NO_CALL
#endif
#ifndef __NR_lstat
#define __NR_lstat PKTSTUN_NO_CALL
#endif
#ifndef __NR_newfstatat
#define __NR_newfstatat PKTSTUN_NO_CALL
#endif
#ifndef __NR_open
#define __NR_open PKTSTUN_NO_CALL
#endif
#ifndef __NR_openat2
#define __NR_openat2 PKTSTUN_NO_CALL
#endif
#ifndef __NR_poll
#define __NR_poll PKTSTUN_NO_CALL
#endif
#ifndef __NR_readlink
#define __NR_readlink PKTSTUN_NO_CALL
#endif
#ifndef __NR_stat
#define __NR_stat PKTSTUN_NO_CALL
#endif
#ifndef __NR_statx
#define __NR_statx PKTSTUN_NO_CALL
#endif


/* The C library has no function for it. */
static int pktstun_bpf(int command, void *attributes, unsigned int size)
{
    return (int)syscall(__NR_bpf, command, attributes, size);
}

/* Neither for these. */
struct pktstun_capabilities {
    uint64_t effective, permitted, inheritable;
};

static int pktstun_capget(struct pktstun_capabilities *sets)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    int result = (int)syscall(__NR_capget, &header, data);
    sets->effective = data[0].effective | (uint64_t)data[1].effective << 32;
    sets->permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    sets->inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
    return result;
}

static int pktstun_capset(const struct pktstun_capabilities *sets)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        data[i].effective = (uint32_t)(sets->effective >> 32 * i);
        data[i].permitted = (uint32_t)(sets->permitted >> 32 * i);
        data[i].inheritable = (uint32_t)(sets->inheritable >> 32 * i);
    }
    return (int)syscall(__NR_capset, &header, data);
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
