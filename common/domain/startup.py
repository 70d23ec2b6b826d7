"""The script a rented machine starts with: fetch the bundle, check it, start the agent. At most 4,096 characters."""

from __future__ import annotations

from collections.abc import Mapping

SCRIPT_LIMIT = 4096
"""The marketplace's limit for onstart and arguments together."""
AGENT_STARTS_MAX = 1000

SCRIPT = r"""#!/bin/sh
# Dumont: fetch the host bundle, check it, keep the agent running.
clock() { cut -d' ' -f1 /proc/uptime | tr -d . | sed 's/^0*\(.\)/\1/'; }  # 0.08 is no octal number
up0=$(clock) bootstrap=$DUMONT_BOOTSTRAP
unset DUMONT_BOOTSTRAP  # not for the agent, nor for what it starts
dir=${DUMONT_HOME:-/opt/dumont}
mkdir -p "$dir" "${DUMONT_WORKSPACE:=/workspace}"
cd "$dir" || exit 1
boot=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
get() {
  if command -v curl >/dev/null; then curl -fsSL --retry 5 --max-time 300 -o "$2" "$1"
  elif command -v wget >/dev/null; then wget -q -t 5 -T 60 -O "$2" "$1"
  else python3 -c 'import sys,urllib.request as u; u.urlretrieve(sys.argv[1],sys.argv[2])' "$1" "$2"; fi
}
json='Content-Type: application/json'
post() {
  if command -v curl >/dev/null; then curl -fsS --max-time 20 -H "$3" -H "$json" -d "$2" "$1"
  elif command -v wget >/dev/null; then wget -q -T 20 -O - --header="$3" --header="$json" --post-data="$2" "$1"
  else python3 -c 'import sys,urllib.request as u
k,_,v=sys.argv[3].partition(": ")
r=u.Request(sys.argv[1],sys.argv[2].encode(),{k:v,"Content-Type":"application/json"})
print(u.urlopen(r,timeout=20).read().decode())' "$1" "$2" "$3"; fi
}
say() {
  cs=$(($(clock)-up0))
  body="{\"label\":\"$DUMONT_LABEL\",\"boot_id\":\"$boot\",\"up_for_s\":$((cs/100)).$(printf %02d $((cs%100)))$1}"
  post "$DUMONT_URL/provision" "$body" "Authorization: Bearer $bootstrap"
}
fail() { echo "dumont: $1" >&2; say ",\"failed\":\"$1\"" >/dev/null; exit 1; }
if [ ! -s token ]; then
  i=0
  until say "" >token.new; do i=$((i+1)); [ $i -ge 20 ] && exit 1; sleep 2; done
  chmod 600 token.new && mv token.new token
fi
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2)
[ -n "$libc" ] || fail "no glibc in the image"
oldest=$(printf '%s\n' "$DUMONT_GLIBC" "$libc" | sort -V | head -n 1)
[ "$oldest" = "$DUMONT_GLIBC" ] || fail "glibc $libc is older than $DUMONT_GLIBC"
if [ ! -x agent/agent ]; then
  i=0
  until get "$DUMONT_BUNDLE_URL" bundle.tgz; do
    i=$((i+1)); [ $i -ge 5 ] && fail "the bundle cannot be fetched"; sleep 2
  done
  [ "$(sha256sum bundle.tgz | cut -d' ' -f1)" = "$DUMONT_BUNDLE_SHA256" ] || fail "the bundle's checksum is wrong"
  tar xzf bundle.tgz || fail "the bundle cannot be unpacked"
  rm -f bundle.tgz
fi
[ "$dir" != /opt/dumont ] || for name in dumont-host dumont; do ln -sf "$dir/agent/agent" /usr/local/bin/$name; done
if [ -n "$DUMONT_SSH_KEY" ]; then
  mkdir -p ~/.ssh && chmod 700 ~/.ssh
  grep -qxF "$DUMONT_SSH_KEY" ~/.ssh/authorized_keys 2>/dev/null || echo "$DUMONT_SSH_KEY" >>~/.ssh/authorized_keys
fi
i=0
while [ $i -lt @STARTS@ ]; do
  agent/agent $DUMONT_KIND && exit 0
  i=$((i+1)); sleep 1
done
"""


def script() -> str:
    """The same for every rental: what differs stands in the environment."""
    text = SCRIPT.replace("@STARTS@", str(AGENT_STARTS_MAX))
    assert len(text) <= SCRIPT_LIMIT, f"the start-up script has {len(text)} characters; the market takes {SCRIPT_LIMIT}"
    return text


STANDBY_PACKAGES = "haproxy openssh-server openssh-client rsync ca-certificates curl"
STANDBY_HEAD = r"""#!/bin/sh
# Dumont: what a standby runs, then the host bundle. Runs as root at every boot, after a preemption too.
export DUMONT_KIND=standby
have() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]; }
i=0
until have haproxy && have sshd && have ssh && have rsync; do
  i=$((i+1)); [ $i -gt @TRIES@ ] && { echo "dumont: no packages" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends @PACKAGES@ || sleep 6
done
# their own services would hold the ports that the front door listens on; with other ports the machine is not ours alone
if [ -z "$DUMONT_PORTS" ] && command -v systemctl >/dev/null; then
  for unit in haproxy.service ssh.service ssh.socket; do systemctl disable --now $unit 2>/dev/null; done
fi
if [ -z "$DUMONT_TUNNEL_USER" ] && ! grep -q ^tunnel: /etc/passwd; then
  useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tunnel
  usermod -p '*' tunnel  # no password fits, and unlike a locked one it may use its key
fi
if [ -z "$DUMONT_ADDRESS" ]; then
  where=http://metadata.google.internal/computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip
  DUMONT_ADDRESS=$(curl -fsS --max-time 5 -H Metadata-Flavor:Google $where) && export DUMONT_ADDRESS
fi
"""
"""Before the script of every host. No more than one address is asked of Google, and only where none was given."""
STANDBY_TRIES_MAX = 10
"""Of installing packages, 6 s apart: a mirror that is being updated is whole again after that."""


def standby_script() -> str:
    """Of a standby, whose market takes longer ones; idempotent, for it runs at every boot."""
    head = STANDBY_HEAD.replace("@TRIES@", str(STANDBY_TRIES_MAX)).replace("@PACKAGES@", STANDBY_PACKAGES)
    return head + script()


def environment(
    *,
    url: str,
    label: str,
    bootstrap: str,
    bundle_url: str,
    bundle_sha256: str,
    probe_url: str,
    glibc_floor: str,
    ssh_public_key: str | None,
    kind: str = "gpu",
) -> Mapping[str, str]:
    """What a rental's container is given. The provider can read all of it: nothing here lives longer than minutes."""
    env = {
        "DUMONT_URL": url,
        "DUMONT_LABEL": label,
        "DUMONT_BOOTSTRAP": bootstrap,
        "DUMONT_BUNDLE_URL": bundle_url,
        "DUMONT_BUNDLE_SHA256": bundle_sha256,
        "DUMONT_PROBE_URL": probe_url,
        "DUMONT_GLIBC": glibc_floor,
    }
    env |= {"DUMONT_SSH_KEY": ssh_public_key} if ssh_public_key else {}
    return env | ({"DUMONT_KIND": kind} if kind != "gpu" else {})
