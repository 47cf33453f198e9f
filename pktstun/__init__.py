"""pktstun: a raw packet engine that serves STUN, and the codec it is made of.

Imports run one way, and a test enforces it:

    errors, stun, packet <- kernel <- stats <- engine <- config <- resources
        <- worker <- supervisor <- cli

`errors`, `stun`, `packet` and `client` use the standard library only and work without the
compiled module; `pktstun.kernel`, and what is built on it, says how to build that.
"""

from __future__ import annotations

__version__ = "0.1.0"
