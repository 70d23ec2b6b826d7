"""Entry point of the host bundle: the agent's loop, one engine task in a child process, the engine by itself, and the
programs of a machine of a pair. Each loads what it needs and nothing of the others: an order waits for its child.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path


def main() -> None:
    match sys.argv[1:]:
        case [] | ["agent"]:
            from common.host.serve import serve

            serve()
        case ["--task", folder]:
            from common.host.task import run_task

            run_task(Path(folder), datetime.now(UTC))
        case ["beats", folder]:
            import asyncio

            from common.host import beats

            asyncio.run(beats.follow(Path(folder)))
        case ["standby" | "watchdog" | "users", *_] as words:
            from common.host import standby

            raise SystemExit(standby.command(words, os.environ))
        case [verb, *_] as words if verb.startswith("livesync-"):
            from common.host.livesync import command

            command.main(words)
        case [verb, *_]:
            from common.host import repository

            if verb not in repository.VERBS and not verb.startswith("-"):
                raise SystemExit(f"dumont-host {verb}: there is no such verb; see dumont-host --help")
            repository.command()


if __name__ == "__main__":
    main()
