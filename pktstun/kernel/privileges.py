"""What a process may do: its user, its capabilities, the memory and the calls it may have.

Theory of operation (capabilities(7)): `become` changes the user and keeps every capability, so
that what is opened next belongs to that user, as all members of a SO_REUSEPORT group must.
`keep` gives up all capabilities but a few, for good: the bounding set is emptied and
no_new_privs is set, and the few are ambient, so that they survive an exec of this program's next
version and nothing else can add to them. `drop` gives up those as well, and takes from the
process the means to get at anything by way of memory that is written and then executed.

What counts as privilege here and is no capability: a nice value below 0. It is allowed by a
resource limit (RLIMIT_NICE), which costs no capability.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ._ffi import check, ffi, lib

if TYPE_CHECKING:
    import pwd
    from collections.abc import Collection

_HIGHEST_NICE_LIMIT = 40  # RLIMIT_NICE of nice value -20: 20 - nice


class Capability(IntEnum):
    """Those that are of use here (<linux/capability.h>)."""

    SETPCAP = 8
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_NICE = 23
    SYS_RESOURCE = 24
    BPF = 39


def permitted() -> frozenset[int]:
    """Return the numbers of the capabilities that this process may use."""
    sets = ffi.new("struct pktstun_capabilities *")
    check(lib.pktstun_capget(sets), "capget")
    return frozenset(number for number in range(64) if sets.permitted >> number & 1)


def become(user: pwd.struct_passwd) -> None:
    """Change the user and the groups of this process; it keeps its capabilities.

    Raises:
        PermissionError: CAP_SETUID or CAP_SETGID is missing.
    """
    # Changing the user clears it (prctl(2)).
    signal = ffi.new("int *")
    check(lib.prctl(lib.PR_GET_PDEATHSIG, _address(signal), 0, 0, 0), "prctl")
    everything = permitted()
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    check(lib.prctl(lib.PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    check(lib.prctl(lib.PR_SET_KEEPCAPS, 0, 0, 0, 0), "prctl")
    _set(everything, everything, ())
    check(lib.prctl(lib.PR_SET_PDEATHSIG, signal[0], 0, 0, 0), "prctl")


def keep(wanted: Collection[int]) -> None:
    """Give up all capabilities but those of `wanted` that this process has.

    It may take any nice value afterwards if it may now. Where the limit for that cannot be raised
    (CAP_SYS_RESOURCE is missing), it keeps CAP_SYS_NICE.
    """
    has = permitted()
    kept = has.intersection(wanted)
    if Capability.SYS_NICE in has:
        try:
            limit = (_HIGHEST_NICE_LIMIT, _HIGHEST_NICE_LIMIT)
            resource.setrlimit(resource.RLIMIT_NICE, limit)
        except (OSError, ValueError):
            kept |= {Capability.SYS_NICE}
    # In this order: what is inheritable must be in the bounding set when it becomes so, what is
    # ambient must be inheritable, and to empty the bounding set takes a capability itself.
    transition = kept | {Capability.SETPCAP} & has
    _set(transition, transition, kept)
    for number in sorted(kept):
        # Where securebits forbid it, an upgrade starts without.
        with suppress(PermissionError):
            check(lib.prctl(lib.PR_CAP_AMBIENT, lib.PR_CAP_AMBIENT_RAISE, number, 0, 0), "prctl")
    if Capability.SETPCAP in has:
        for number in range(_last_capability() + 1):
            check(lib.prctl(lib.PR_CAPBSET_DROP, number, 0, 0, 0), "prctl")
    _set(kept, kept, kept)
    check(lib.prctl(lib.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def drop() -> None:
    """Give up every capability, and memory that can be written and executed (Linux 6.3)."""
    _set((), (), ())
    check(lib.prctl(lib.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    # The process and its descriptors are no business of other processes of the user.
    check(lib.prctl(lib.PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    lib.prctl(lib.PR_SET_MDWE, lib.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # EINVAL on older kernels


def allow_descriptors(wanted: int) -> int:
    """Let this process open so many descriptors (RLIMIT_NOFILE); return how many it may.

    The hard limit is raised where CAP_SYS_RESOURCE allows it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
            hard = wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def own_proc_files() -> None:
    """Have the files in /proc/self belong to the user: after `become` they are root's."""
    check(lib.prctl(lib.PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def _set(
    effective: Collection[int], allowed: Collection[int], inheritable: Collection[int]
) -> None:
    sets = ffi.new("struct pktstun_capabilities *")
    sets.effective = sum(1 << number for number in set(effective))
    sets.permitted = sum(1 << number for number in set(allowed))
    sets.inheritable = sum(1 << number for number in set(inheritable))
    check(lib.pktstun_capset(sets), "capset")


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))


def _address(pointer: object) -> int:
    return int(ffi.cast("uintptr_t", pointer))
