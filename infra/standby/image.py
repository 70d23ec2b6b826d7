"""Builds the standby's image: its Containerfile and the same bundle as on a GPU host, by `gpu_host.image`."""

from __future__ import annotations

import json
from pathlib import Path

from infra.gpu_host import image

CONTAINERFILE = Path(__file__).with_name("Containerfile")
NAME = "localhost/dumont-standby"


def build() -> str:
    """The image's name, its content in the tag; built once. Raises `image.CannotBuild`."""
    return image.build(CONTAINERFILE, NAME)


if __name__ == "__main__":
    print(json.dumps({"image": build()}))
