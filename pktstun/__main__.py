"""`python -m pktstun` is the `pktstun` command."""

from __future__ import annotations

import sys

from pktstun.cli import main

if __name__ == "__main__":
    sys.exit(main())
