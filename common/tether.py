"""Processes that end with whoever started them: the kernel sees to it, whatever ends the starter."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def tethered(words: Sequence[str]) -> list[str]:
    """The command line of a program that is killed with the thread that starts it.

    util-linux's `setpriv` (2.33 and later; part of every Debian and Ubuntu) asks the kernel and becomes the program.
    A `preexec_fn` would be a fork of all that the starter is: where gRPC has threads, 3 of 100 such children were
    aborted by its fork handlers (measured with grpcio 1.85). Without `setpriv` the program is started untethered.
    """
    import shutil  # not for the agent, which only says `die_with`: it brings three codecs along

    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *words] if setpriv else list(words)


def die_with(parent: int) -> None:
    """The kernel ends this process with its parent; one whose parent died before it asked ends itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
