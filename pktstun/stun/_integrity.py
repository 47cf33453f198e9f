"""What protects a message: FINGERPRINT and the two integrity attributes (RFC 8489 section 14).

Each is computed over the message up to, and excluding, the attribute itself, under a header
whose length counts it and nothing behind it. For FINGERPRINT, which is last, that is the
header as sent; for the others it is not, and `covered` means the bytes after that change.
"""

from __future__ import annotations

import hmac
import zlib
from typing import TYPE_CHECKING

from pktstun.errors import StunError

if TYPE_CHECKING:
    from typing_extensions import Buffer

FINGERPRINT_XOR = 0x5354554E
FINGERPRINT_SIZE = 4

INTEGRITY_SIZE = 20
INTEGRITY_SHA256_SIZES = range(16, 33, 4)


def fingerprint(covered: Buffer) -> int:
    """Return the value of FINGERPRINT (section 14.7), 32 bits, for the bytes in front of it."""
    return zlib.crc32(covered) ^ FINGERPRINT_XOR


def message_integrity(key: bytes, covered: Buffer) -> bytes:
    """Return the value of MESSAGE-INTEGRITY (section 14.5): HMAC-SHA1, 20 bytes."""
    return hmac.digest(key, covered, "sha1")


def message_integrity_sha256(key: bytes, covered: Buffer, length: int = 32) -> bytes:
    """Return the value of MESSAGE-INTEGRITY-SHA256 (section 14.6).

    Args:
        key: of the credentials; see `short_term_key` and `long_term_key`.
        covered: the message in front of the attribute, its length counting the attribute.
        length: bytes of the HMAC-SHA256 that are sent; less than all 32 only where the
            usage of STUN says so.

    Raises:
        StunError: the length is not 16, 20, 24, 28 or 32.
    """
    check_sha256_size(length)
    return hmac.digest(key, covered, "sha256")[:length]


def check_sha256_size(length: int) -> None:
    """Raise StunError unless MESSAGE-INTEGRITY-SHA256 may have this length."""
    if length not in INTEGRITY_SHA256_SIZES:
        raise StunError(
            f"MESSAGE-INTEGRITY-SHA256 has 16 to 32 bytes, a multiple of 4, not {length}"
        )
