"""The editor's extension: its manifest and its code agree, node's own tests of it, and the .vsix."""

from __future__ import annotations

import inspect
import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from common.host import notice
from common.host.ports import Ports
from infra.vscode import pack

HERE = Path(pack.__file__).parent
NODE_S = 120


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return dict(json.loads((HERE / "package.json").read_text()))


@pytest.fixture(scope="module")
def code() -> str:
    return (HERE / "extension.js").read_text()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed here")
def test_what_is_decided_and_asked_in_node() -> None:
    done = subprocess.run(["node", "--test"], cwd=HERE, capture_output=True, text=True, timeout=NODE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"# pass (\d+)", done.stdout)[0]) >= 20


def test_every_command_is_registered_and_every_registered_one_is_offered(manifest: dict[str, Any], code: str) -> None:
    offered = {row["command"] for row in manifest["contributes"]["commands"]}
    assert offered == set(re.findall(r'registerCommand\("([^"]+)"', code))
    assert re.findall(r'item\.command = "([^"]+)"', code)[0] in offered


def test_every_setting_is_read_and_every_one_that_is_read_exists(manifest: dict[str, Any], code: str) -> None:
    settings = set(manifest["contributes"]["configuration"]["properties"])
    assert settings == {f"dumont.{name}" for name in re.findall(r'settings\.get\("([^"]+)"\)', code)}


def test_the_settings_keep_the_bounds_of_the_code(manifest: dict[str, Any]) -> None:
    pace = manifest["contributes"]["configuration"]["properties"]["dumont.pollMs"]
    said = re.findall(r"POLL_MS = \{ usual: (\d+), min: (\d+), max: (\d+) \}", (HERE / "decide.js").read_text())
    assert [tuple(map(int, row)) for row in said] == [(pace["default"], pace["minimum"], pace["maximum"])]


def test_it_asks_where_a_standby_answers(manifest: dict[str, Any]) -> None:
    address = manifest["contributes"]["configuration"]["properties"]["dumont.statusUrl"]["default"]
    assert address == f"http://127.0.0.1:{Ports().status}/status"


def test_a_folder_that_nobody_trusts_does_not_say_where_to_ask(manifest: dict[str, Any]) -> None:
    assert manifest["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"] == ["dumont.statusUrl"]


def test_every_state_of_a_standby_is_known_and_every_field_that_is_read_is_said() -> None:
    code = (HERE / "decide.js").read_text()
    assert set(re.findall(r'case "(\w+)"', code)) == set(re.findall(r'"(\w+)"', inspect.getsource(notice.state_of)))
    read = set(re.findall(r"said\.(\w+)", code))
    assert read <= set(notice.Status.__dataclass_fields__)


def test_the_vsix_is_the_same_bytes_every_time_and_holds_what_runs() -> None:
    data = pack.pack()
    assert data == pack.pack()
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        names = set(zipped.namelist())
        assert zipped.testzip() is None
        manifest = json.loads(zipped.read("extension/package.json"))
        described = zipped.read("extension.vsixmanifest").decode()
    entry = manifest["main"].removeprefix("./")
    required = set(re.findall(r'require\("\./(\w+)"\)', "".join(p.read_text() for p in HERE.glob("*.js"))))
    assert {f"extension/{entry}", *(f"extension/{name}.js" for name in required)} <= names
    assert not any("test" in name or "rig" in name for name in names)
    assert f'Id="{manifest["name"]}" Version="{manifest["version"]}"' in described


def test_the_rig_is_pinned_with_checksums_and_says_nothing_about_where_it_comes_from() -> None:
    wanted = json.loads((HERE / "rig/package.json").read_text())
    lock = json.loads((HERE / "rig/package-lock.json").read_text())["packages"]
    for name, version in {**wanted["dependencies"], **wanted["optionalDependencies"]}.items():
        assert lock[f"node_modules/{name}"]["version"] == version
    assert all("resolved" not in row for row in lock.values())
    assert all(row["integrity"].startswith("sha512-") for name, row in lock.items() if name)
