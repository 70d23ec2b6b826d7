#!/usr/bin/env bash
# Writes the pinned, hashed requirement files from pyproject.toml (needs uv). No address of a registry is written.
set -euo pipefail
cd "$(dirname "$0")"
resolve() { uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate "$@"; }
resolve ../../pyproject.toml -o runtime.txt
resolve ../../pyproject.toml --extra host --extra dev -c runtime.txt -o dev.txt
resolve vendor.in -o vendor.txt
