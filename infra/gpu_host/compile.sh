#!/usr/bin/env bash
# Compiles the snapshot engine's C into the file that is named. Nothing newer than the processor's oldest is asked for:
# what a newer one does better is chosen when it runs.
set -euo pipefail
to=$1
mkdir -p "$(dirname "$to")"
exec "${CC:-cc}" -std=gnu11 -O3 -Wall -Wextra -fPIC -shared -o "$to" "$(dirname "$0")"/../../common/snapshots/*.c
