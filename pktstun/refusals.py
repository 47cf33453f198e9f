"""What the kernel refuses, in an operator's words: an errno in, an error with a fix out."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pktstun.errors import (
    TOO_FEW_DESCRIPTORS,
    ConfigError,
    EngineError,
    NotYetError,
    PktstunError,
    PrivilegeError,
)
from pktstun.kernel import VerifierError

if TYPE_CHECKING:
    from pktstun.config import Listen, Plan

__all__ = ["check_nice", "explain_bind", "explain_ring", "explain_takeover"]


def explain_bind(error: OSError, listen: Listen, protocol: str = "UDP") -> PktstunError:
    """Return what it means that an address cannot be bound; `protocol` is UDP, TCP or TLS."""
    option = "--tls-port" if protocol == "TLS" else "--port"
    protocol = "TCP" if protocol == "TLS" else protocol
    address, port = listen.address, listen.address.port
    if error.errno == errno.EADDRINUSE:
        return EngineError(
            f"{protocol} port {port} on {address.ip} is in use: stop the program that has it "
            f"('ss -l{protocol[0].lower()}np sport = :{port}' shows it), choose another with "
            f"{option}, or have each serve addresses of its own with --listen"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return NotYetError(
            f"{address.ip} is no address of this host ('ip address' shows those): correct "
            "--listen, or add the address first"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PrivilegeError(
            f"port {port} needs CAP_NET_BIND_SERVICE: run as root, give the service "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE, or choose a port above 1023"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return EngineError(TOO_FEW_DESCRIPTORS)
    if error.errno == errno.EAFNOSUPPORT:
        return ConfigError(f"this host has no IPv{address.ip.version}: correct --listen")
    return EngineError(f"cannot listen on {address}: {error.strerror}")


def explain_takeover(error: OSError) -> PktstunError:
    """Return what it means that the program at tcx ingress cannot be had."""
    if isinstance(error, VerifierError):
        return EngineError(f"takeover is not possible, the kernel refuses the program: {error}")
    if isinstance(error, PermissionError):
        return PrivilegeError(
            "takeover needs CAP_BPF and CAP_NET_ADMIN: run as root, give the service "
            "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN, or use --no-takeover"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return EngineError(TOO_FEW_DESCRIPTORS)
    if error.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return EngineError(
            "takeover is not possible, this kernel has no tcx: use Linux 6.6 or later, "
            "or --no-takeover"
        )
    return EngineError(f"takeover is not possible: {error.strerror}; use --no-takeover")


def explain_ring(error: OSError, plan: Plan) -> PktstunError:
    """Return what it means that a packet socket or its ring cannot be had."""
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"{plan.mode} mode needs CAP_NET_RAW: run as root, give the service "
            "AmbientCapabilities=CAP_NET_RAW, or use --mode recvmmsg, which needs no privilege"
        )
    name = plan.iface.name if plan.iface else ""
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return EngineError(TOO_FEW_DESCRIPTORS)
    if error.errno == errno.ENOMEM:
        return EngineError(
            f"no memory for {len(plan.cpus)} rings of {plan.geometry.size >> 20} MiB: "
            "free some, or use fewer --cpus"
        )
    return EngineError(f"cannot open a packet ring on {name}: {error.strerror}")


def check_nice(wanted: int | None) -> None:
    """Find out whether the workers may take this nice value; to give it back is always allowed."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if wanted is None or wanted >= before:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    except PermissionError as error:
        raise PrivilegeError(
            f"--nice {wanted} needs CAP_SYS_NICE: run as root, give the service "
            "AmbientCapabilities=CAP_SYS_NICE, or leave it out"
        ) from error
    os.setpriority(os.PRIO_PROCESS, 0, before)
