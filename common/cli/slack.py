"""slack, savings: who in Slack is you, and what was not spent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from common.cli import session

slack = typer.Typer(add_completion=False, no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@slack.command("link")
def link(code: Annotated[str, typer.Argument(help="Shown by /gpu link in Slack.")], json_: Json = False) -> None:
    """From now on you are in Slack whom the code was shown to."""
    with session.client() as api:
        found = api.post("/slack/link", {"code": code})
    session.out(found) if json_ else print(f"you are {_who(found)} in Slack; unlink: dumont slack unlink {found['id']}")


@slack.command("list")
def list_(json_: Json = False) -> None:
    """Your users in Slack."""
    with session.client() as api:
        found = api.get("/slack/links")
    if json_:
        session.out(found)
        return
    for item in found["items"]:
        print(f"{item['id']}  {_who(item)}  since {item['linked_at']}")


@slack.command("unlink")
def unlink(id: str, json_: Json = False) -> None:
    """This user in Slack is nobody of yours any more."""
    with session.client() as api:
        api.delete(f"/slack/links/{id}")
    session.out({"unlinked": id}) if json_ else print(f"unlinked {id}")


def savings(days: Annotated[int, typer.Option(min=1, max=90)] = 7, json_: Json = False) -> None:
    """What was spent, and the hours that were not billed because hibernated."""
    with session.client() as api:
        found = api.get("/savings", days=days)
    if json_:
        session.out(found)
        return
    spent, hours = float(found["spent_usd"]), found["hibernated_hours"]
    print(f"{spent:.4f} USD spent; {hours:.1f} h of GPU not billed, in {days} days")
    for item in found["items"]:
        print(f"{item['id']}  {float(item['spent_usd']):.4f} USD  {item['hibernated_hours']:.1f} h hibernated")
        for span in item["hibernated"]:
            print(f"    {span['start']} to {span['end']}")


def _who(item: dict[str, Any]) -> str:
    return f"{item['slack_name'] or item['slack_user']} ({item['slack_user']} in {item['slack_team']})"
