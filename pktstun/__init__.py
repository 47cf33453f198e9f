"""pktstun: a raw packet engine that serves STUN, and the codec it is made of.

Imports run one way, and a test enforces it:

    errors, stun, packet  <-  kernel  <-  engine  <-  worker  <-  supervisor  <-  cli

`stun` and `packet` use the standard library only. `import pktstun` and everything above
works without the compiled module; `pktstun.kernel` needs it and says how to build it.
"""

from __future__ import annotations

__version__ = "0.1.0"
