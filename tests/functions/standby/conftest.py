"""A hand-cranked world in which instances have standbys, at a simulated Google."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.adapters.s3 import S3
from infra.demo.s3_server import S3Server
from tests.hand_cranked import World


@pytest.fixture
def world(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, with_google=True)
    yield made
    made.close()
