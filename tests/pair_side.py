"""One machine of a pair as a process tree of its own: `python -m tests.pair_side gpu|standby <home>`.

What an agent does for its pair is done here by what stands in `home`: the programs are the product's. Each side also
answers on its http port with its name, so that whoever connects to the front door sees where it leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from common.host import pair, standby
from common.host.ports import ports_of
from common.host.programs import GpuPrograms

LOOK_EVERY_S = 0.05


async def answering(name: str, host: str, port: int) -> asyncio.Server:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name.encode())
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port)


async def gpu(home: Path) -> None:
    ports = ports_of(os.environ)
    label, workspace = os.environ["DUMONT_LABEL"], Path(os.environ["DUMONT_WORKSPACE"])
    synced = workspace if os.environ.get("SYNCS") else None
    programs = GpuPrograms(home, label, ports, time.monotonic, synced, os.environ["DUMONT_AUTHORIZED_KEYS"])
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    followed = None
    async with await answering("gpu", os.environ.get("ANSWER_HOST", "127.0.0.1"), ports.http.gpu_port):
        while not told.is_set():
            kept = pair.read(home)
            if kept and kept != followed:
                programs.follow(kept)
                followed = kept
            programs.tend()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), LOOK_EVERY_S)
        programs.farewell()
        await asyncio.sleep(3600)  # it ends with its machine


async def mirror() -> None:
    setting = standby.setting_of(os.environ)
    async with await answering("standby", "127.0.0.1", setting.ports.http.inner_port):
        await standby.serve(setting)


if __name__ == "__main__":
    asyncio.run(gpu(Path(sys.argv[2])) if sys.argv[1] == "gpu" else mirror())
