#!/usr/bin/env bash
# Writes the pinned, hashed requirement files from pyproject.toml. No address of a registry is written.
set -euo pipefail
cd "$(dirname "$0")"
tools=../../.cache/pin
[ -x $tools/bin/uv ] || { python3 -m venv $tools && $tools/bin/pip install -q --disable-pip-version-check uv; }
# what stands in a file already is kept as long as pyproject.toml allows it
resolve() { $tools/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate "$@"; }
resolve ../../pyproject.toml -o runtime.txt
resolve ../../pyproject.toml --extra host --extra dev -c runtime.txt -o dev.txt
resolve ../../pyproject.toml --extra deploy --extra host --extra dev -c dev.txt -o deploy.txt
resolve vendor.in -o vendor.txt
resolve fuzz.in -o fuzz.txt
resolve --no-deps bench.in -o bench.txt
