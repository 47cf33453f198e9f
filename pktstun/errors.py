"""The exceptions that pktstun raises, and the exit status that each one stands for.

Every error that a caller can act on derives from `PktstunError`. The command line
turns an error into one line on standard error and `exit_status`, so that a service
manager can tell what is worth a restart (1, 3, 75) from what is not (2, 77, 78):

    0   clean end
    1   failure while running
    2   wrong use of the command line (argparse's own number)
    3   a worker could not start; of `status` and `top`: no service runs
    75  an interface or address is not on this host, or not yet (EX_TEMPFAIL of sysexits.h)
    77  a privilege is missing (EX_NOPERM of sysexits.h)
    78  the configuration is wrong (EX_CONFIG of sysexits.h)

Nothing here imports anything of pktstun: this module lies below all the others.
"""

from __future__ import annotations

__all__ = [
    "BootError",
    "ConfigError",
    "EngineError",
    "NativeMissingError",
    "NoServiceError",
    "NotYetError",
    "PacketError",
    "PktstunError",
    "PrivilegeError",
    "StatusError",
    "StunError",
    "UsageError",
]


TOO_FEW_DESCRIPTORS = (
    "too few open files are allowed: raise the limit ('ulimit -n', LimitNOFILE= of a service)"
)
"""What EMFILE means to an operator, wherever it comes from."""


class PktstunError(Exception):
    """Base of all errors that pktstun raises on purpose."""

    exit_status = 1


class StunError(PktstunError, ValueError):
    """Bytes that are no valid STUN message, or a message that must not be sent.

    `offset` is the byte offset, from the start of the message, at which the problem
    was found; None where no single byte is to blame. `problem` is the text without it.
    """

    def __init__(self, problem: str, offset: int | None = None) -> None:
        super().__init__(problem if offset is None else f"{problem} (at byte {offset})")
        self.problem = problem
        self.offset = offset


class PacketError(PktstunError, ValueError):
    """A frame that is not a well-formed UDP packet, or one that is not to be answered.

    `reason` is the short name under which such frames are counted; `offset` is the byte
    offset in the frame at which the problem was found.
    """

    def __init__(self, reason: str, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.reason = reason
        self.offset = offset


class UsageError(PktstunError):
    """The command line makes no sense."""

    exit_status = 2


class ConfigError(PktstunError):
    """The configuration cannot be carried out on this host; the text names the fix."""

    exit_status = 78


class NotYetError(ConfigError):
    """It names an interface or an address that this host has not, or not yet."""

    exit_status = 75


class PrivilegeError(PktstunError):
    """The process lacks a privilege; the text names it and how to give it."""

    exit_status = 77


class EngineError(PktstunError):
    """The kernel refused something that a running service needs."""


class BootError(PktstunError):
    """A worker ended before it was ready, so that a restart would not help."""

    exit_status = 3


class StatusError(PktstunError):
    """A running service cannot be asked how it is; the text says why."""


class NoServiceError(StatusError):
    """There is no running service to ask."""

    exit_status = 3


class NativeMissingError(PktstunError, ImportError):
    """The compiled module is not there; the text says how to build it."""
