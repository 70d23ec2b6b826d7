#!/usr/bin/env bash
# Sets the editor up below .cache/code-server, once for each package-lock.json, and prints the folder.
# No package's script is run: what code-server would build of its own (kerberos, for one) is not needed here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../../.." && mkdir -p .cache/code-server && cd .cache/code-server && pwd -P)
folder=$cache/$(cat "$here/package.json" "$here/package-lock.json" | sha256sum | cut -c1-12)

# Two test runs at once: the second waits for the first, and finds everything there.
exec 9>"$cache/lock"
flock 9
if [ ! -e "$folder/.ready" ]; then
  command -v npm >/dev/null || { echo "npm is not installed" >&2; exit 1; }
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$here/package.json" "$here/package-lock.json" "$folder"
  quiet=(--ignore-scripts --omit=dev --no-audit --no-fund --loglevel=error)
  (cd "$folder" && npm ci "${quiet[@]}" >&2)
  # code-server carries the pins and checksums of its editor's own packages; not all of them, which `ci` refuses.
  editor=$folder/node_modules/code-server/lib/vscode
  for each in "$editor" "$editor/extensions"; do
    (cd "$each" && npm install "${quiet[@]}" >&2)
  done
  touch "$folder/.ready"
fi
echo "$folder"
