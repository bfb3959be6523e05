#!/bin/sh
# What tests/cluster needs from Debian, where it is missing. Nothing that is installed is started.
set -eu
if [ "$(id -u)" -ne 0 ]; then
    echo "make test-cluster: needs root, for network namespaces and apt-get" >&2
    exit 2
fi
PATH=$PATH:/usr/sbin:/sbin
missing=""
need() { command -v "$1" > /dev/null || missing="$missing $2"; }
need sshd openssh-server
need ssh openssh-client
need rsync rsync
need ip iproute2
need unshare util-linux
need pgrep procps
ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || missing="$missing postgresql"
test -n "$missing" || exit 0
if ! command -v apt-get > /dev/null; then
    echo "make test-cluster: needs$missing; there is no apt-get here" >&2
    exit 2
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then # asked before a package starts its service
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
echo "installing$missing"
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing > /dev/null
