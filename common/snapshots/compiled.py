"""The engine's few lines of C (`*.c` beside this file), as set-up compiled them: `infra/gpu_host/compile.sh`.

They only make faster what stands in Python too: where they are missing, everything works, slower.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

PLACE = "lib/dumont/engine.so"
"""Below the interpreter's prefix; in a bundle too."""


@cache
def library() -> ctypes.PyDLL | None:
    """None where it is missing, or the machine's words are not as the C counts on.

    A call holds the interpreter's lock: what it works with is one thread's until it returns.
    """
    if sys.byteorder != "little":
        return None
    try:
        return ctypes.PyDLL(str(Path(sys.prefix) / PLACE))
    except OSError:
        return None
