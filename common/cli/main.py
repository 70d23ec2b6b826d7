"""`dumont`: verbs are collected from the entry-point group `dumont.commands`, each loaded only when it is called."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import typer

from common.cli.session import EXIT_CODES, USAGE

GROUP = "dumont.commands"
SUMMARIES = {
    "up": "Run everything on this machine: the simulated world and the control plane.",
    "demo": "Play the whole story on this machine and check every step.",
    "deploy": "The control plane on Google Cloud: plan, apply, status, destroy.",
    "doctor": "Is the deployment well? Each failure with its mend.",
    "login": "Sign in.",
    "users": "Users of your account; the first admin of a new one.",
    "gpus": "What the market offers; deploy one.",
    "instances": "Your instances: list, show, wake, hibernate, destroy, restore, why.",
    "machines": "The same as instances; `machines history`: what the rented machines did.",
    "budget": "What your account may spend, and has spent.",
    "pool": "The warm pool: machines that wait for an instance.",
    "markets": "The marketplace accounts: credit, and what they announce.",
    "snapshots": "What an instance has kept: list, diff, restore, verify, drill, terms.",
    "standby": "What protects your instances: list, on, off.",
    "failover": "To the standby and back: now, back, drill.",
    "ssh": "Open a shell on an instance.",
    "evaluate": "How good forecasts and policies are, on recorded series: prices, survival, waiting, idle, jobs.",
    "slack": "Who in Slack is you.",
    "savings": "What was spent, and the hours that were not billed.",
}


def main() -> None:
    verbs = {point.name: point for point in entry_points(group=GROUP)}
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview(verbs))
        raise SystemExit(0 if words else USAGE)
    if words[0] not in verbs:
        print(f"dumont: there is no verb {words[0]!r}; see: dumont --help", file=sys.stderr)
        raise SystemExit(USAGE)
    command = typer.main.get_command(_loaded(verbs[words[0]]))
    command(args=words[1:], prog_name=f"dumont {words[0]}")


def overview(verbs: dict[str, EntryPoint]) -> str:
    """Every verb with its line, and what the exit codes mean; nothing is loaded for it."""
    lines = [f"  {name:10} {SUMMARIES.get(name, '')}" for name in sorted(verbs)]
    codes = [f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["Usage: dumont VERB ...", "", *lines, "", "Exit codes:", *codes])


def _loaded(point: EntryPoint) -> typer.Typer:
    """A verb is a typer application, or one function that becomes one."""
    found = point.load()
    if isinstance(found, typer.Typer):
        return found
    app = typer.Typer(add_completion=False)
    app.command()(found)
    return app


if __name__ == "__main__":
    main()
