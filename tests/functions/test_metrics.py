"""What Prometheus scrapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from functions_framework import create_app

from common import bootstrap
from common.adapters.s3 import S3
from common.domain.account import Role
from common.domain.host import HostRecord
from common.domain.instance import Protection
from common.records import dump, read
from common.topology import function
from common.views import metrics
from infra.demo.s3_server import S3Server
from jobs import prune_snapshots
from tests.functions.conftest import key_for
from tests.functions.test_story_by_hand import running, write
from tests.hand_cranked import ACCOUNT, World

LINE = re.compile(r'[a-z_]+\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\} -?[0-9.e+-]+')


@pytest.fixture
def client(world: World) -> FlaskClient:
    bootstrap.use(world.app)
    return create_app("metrics", function("metrics").source).test_client()


def scraped(client: FlaskClient, key: str) -> str:
    answer = client.get("/", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
    return answer.get_data(as_text=True)


def test_every_line_is_prometheus_and_tells_of_the_snapshot(world: World, client: FlaskClient) -> None:
    id = running(world, snapshot_every_s=60)
    write(world, id)
    world.until(lambda: world.show(id).snapshot is not None)
    world.pass_time(30)

    text = scraped(client, key_for(world, ACCOUNT, Role.VIEWER))

    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in text.splitlines())
    assert re.search(rf'dumont_instance_info\{{instance="{id}",name="",state="running"', text)
    assert f'dumont_snapshot_files{{instance="{id}"}} 1.0' in text
    assert re.search(rf'dumont_snapshot_age_seconds\{{instance="{id}"\}} [0-9]', text)
    assert "dumont_job_age_seconds" not in text


def test_an_order_under_way_shows_how_far_and_how_fast(world: World, client: FlaskClient) -> None:
    id = running(world)
    label = world.record(id).writer or ""
    kept = read(world.app, "hosts", label, HostRecord)
    assert kept
    progress = kept.value.progress.model_copy(
        update={
            "order": "snapshot-1",
            "what": "read",
            "done_bytes": 300,
            "total_bytes": 900,
            "files": 7,
            "stored_bytes": 100,
            "seconds": 3.0,
        }
    )
    world.store.put("hosts", label, dump(kept.value.model_copy(update={"progress": progress})))

    text = scraped(client, key_for(world, ACCOUNT, Role.VIEWER))
    shown = world.show(id).progress

    at = f'{{instance="{id}",what="read"}}'
    assert f"dumont_order_bytes_per_second{at} 100.0" in text
    assert f"dumont_order_compression_ratio{at} 3.0" in text
    assert f"dumont_order_seconds_left{at} 6.0" in text
    assert (shown["files"], shown["bytes_per_s"], shown["ratio"], shown["seconds_left"]) == (7, 100.0, 3.0, 6.0)


def test_a_standby_says_whether_it_is_in_sync_and_how_far_it_lags(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects, with_google=True)
    id = world.provision()
    at = f'{{instance="{id}"}}'

    def told() -> dict[str, float]:
        lines = [line for line in metrics.exposition(world.app, ACCOUNT, world.now).splitlines() if line[0] != "#"]
        assert all(LINE.fullmatch(line) for line in lines)
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines) if "standby" in name}

    assert told() == {f"dumont_standby_in_sync{at}": 0.0}
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    instance = world.record(id)
    kept = read(world.app, "hosts", instance.writer or "", HostRecord)
    assert kept
    sync = kept.value.sync.model_copy(update={"epoch": instance.epoch, "lag_s": 1.5})
    world.store.put("hosts", instance.writer or "", dump(kept.value.model_copy(update={"sync": sync})))
    assert told() == {f"dumont_standby_in_sync{at}": 1.0, f"dumont_standby_lag_seconds{at}": 1.5}
    older = sync.model_copy(update={"epoch": instance.epoch - 1})
    world.store.put("hosts", instance.writer or "", dump(kept.value.model_copy(update={"sync": older})))
    assert told() == {f"dumont_standby_in_sync{at}": 1.0}
    without = instance.having(spec=instance.spec.model_copy(update={"standby": False}))
    world.store.put("instances", instance.key, dump(without))
    assert told() == {}
    world.close()


def test_a_stranger_sees_nothing_of_it_and_nobody_without_a_key(world: World, client: FlaskClient) -> None:
    id = running(world)

    assert id not in scraped(client, key_for(world, "other", Role.ADMIN))
    assert client.get("/").status_code == 401


def test_names_cannot_forge_a_line(world: World) -> None:
    assert metrics._escaped('a"} 1\nb\\') == 'a\\"} 1\\nb\\\\'


def test_the_operator_sees_the_jobs(world: World, client: FlaskClient) -> None:
    from common.workflows import doctor

    doc = world.store.get("deployment", "self")
    assert doc
    world.store.cas(doc, {**doc.data, "operator": ACCOUNT})
    began = world.now
    prune_snapshots.run(world.app)
    doctor.ran(world.app, "prune_snapshots", began)

    text = scraped(client, key_for(world, ACCOUNT, Role.VIEWER))

    assert 'dumont_job_failed{job="prune_snapshots"} 0.0' in text
