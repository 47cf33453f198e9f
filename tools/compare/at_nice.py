"""at_nice.py NICE COMMAND...: run a command with a nice value that counts against all others.

nice(1) sets it within the command's session only, where the kernel has autogroups; see
pktstun/kernel/priority.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pktstun.kernel import Priority

if __name__ == "__main__":
    priority = Priority(int(sys.argv[1]))
    if not priority.settle(patience=60):
        sys.exit("the kernel takes no nice value for this session: something else writes them")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - what it is for
