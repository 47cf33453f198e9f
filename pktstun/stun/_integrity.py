"""What protects a message: FINGERPRINT (RFC 8489 section 14.7).

The CRC covers the message up to, and excluding, the FINGERPRINT attribute, with a header
whose length already counts it. Since FINGERPRINT is last, that is the header as sent.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

FINGERPRINT_XOR = 0x5354554E
FINGERPRINT_SIZE = 8


def fingerprint(covered: Buffer) -> int:
    """Return the value of FINGERPRINT, 32 bits, for the bytes in front of it."""
    return zlib.crc32(covered) ^ FINGERPRINT_XOR
