"""The ports of a pair: what the user connects to, what lies behind the door, what the two machines say to each other.

All of them can be moved by one setting of the environment, `DUMONT_PORTS`, JSON of the fields of `Ports`: where several
hosts share a machine, as in the demo and in tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SETTING = "DUMONT_PORTS"


@dataclass(frozen=True)
class Service:
    """One port of the user's."""

    name: str
    door_port: int
    """On the standby: what the user connects to."""
    gpu_port: int
    """On the GPU's loopback."""
    inner_port: int
    """Behind the door: at the GPU's address on the standby (`tunnel.address_of`), and on the standby's loopback."""


@dataclass(frozen=True)
class Ports:
    ssh: Service = Service("ssh", 22, 2222, 12022)
    jupyter: Service = Service("jupyter", 8888, 8888, 18888)
    http: Service = Service("http", 8080, 8080, 18080)
    tunnel: int = 2200
    """Of the standby's sshd for tunnels."""
    beats: int = 7946
    """Of the standby, for datagrams and tethers."""
    status: int = 7950
    """Of `/status` on the standby's loopback."""
    sync: int = 7951
    """Of the live sync's receiver on the standby's loopback, and of the way there on the GPU's."""

    @property
    def services(self) -> tuple[Service, ...]:
        return (self.ssh, self.jupyter, self.http)


def ports_of(env: Mapping[str, str]) -> Ports:
    """Raises ValueError for a setting that is none."""
    try:
        said = json.loads(env.get(SETTING) or "{}")
        moved: dict[str, Any] = {
            name: Service(**{"name": name, **value}) if isinstance(value, dict) else int(value)
            for name, value in said.items()
        }
        return replace(Ports(), **moved)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{SETTING}: {error}") from None
