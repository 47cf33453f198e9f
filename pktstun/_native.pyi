# Untyped: pktstun.kernel gives what it gets from here types.
from typing import Any

ffi: Any
lib: Any
