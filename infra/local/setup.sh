#!/usr/bin/env bash
# Prepares .venv with the `dumont` command in it, from nothing but Debian or Ubuntu with Python 3.11 or newer.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The distribution's own first: it is built with link-time and profile-guided optimisation, which one compiled at home
# seldom is (a fifth to a quarter of all processor time).
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && is_new_enough /usr/bin/python3; then python=/usr/bin/python3; fi

# The snapshot engine has two files of C. PyInstaller needs binutils and the shared libpython, which Debian keeps apart
# from the interpreter.
need=()
command -v "$python" >/dev/null || need+=(python3)
if command -v "$python" >/dev/null; then
  is_new_enough "$python" || { say "dumont needs Python 3.11 or newer; $python is older. Set PYTHON=/path/to/python3.11."; exit 1; }
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv)
  "$python" - <<'PY' || need+=("lib$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')")
import ctypes.util, os, sys, sysconfig
name = "python%d.%d" % sys.version_info[:2]
here = os.path.join(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "-")
sys.exit(0 if os.path.exists(here) or ctypes.util.find_library(name) else 1)
PY
fi
command -v objdump >/dev/null || need+=(binutils)
command -v cc >/dev/null || need+=(gcc libc6-dev)
command -v git >/dev/null || need+=(git)
command -v curl >/dev/null || command -v wget >/dev/null || need+=(curl)
# What a standby runs, and the GPU host's side of it.
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || need+=(haproxy)
[ -x /usr/sbin/sshd ] || need+=(openssh-server)
command -v ssh >/dev/null || need+=(openssh-client)
command -v rsync >/dev/null || need+=(rsync)
# The tests of the host's image build and run it; who is not root goes without them, and they say so.
if [ "$(id -u)" = 0 ]; then
  for program in podman buildah runc debootstrap; do command -v $program >/dev/null || need+=($program); done
  if [[ " ${need[*]} " == *" podman "* ]]; then need+=(uidmap netavark aardvark-dns iptables iproute2); fi
fi
if ((${#need[@]})); then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian packages: ${need[*]}"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >&2
  else
    say "please install these packages first: ${need[*]}   (for example: sudo apt-get install ${need[*]})"
    exit 1
  fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r infra/requirements/dev.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . 2>/dev/null \
  || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
bash infra/gpu_host/compile.sh .venv/lib/dumont/engine.so
.venv/bin/python -m compileall -q common functions jobs infra || true
touch .venv/.ready
