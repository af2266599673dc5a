#!/bin/sh
# Puts the members of the cluster's stores into .stores/bin, for tests and for whoever runs them by hand:
#   etcd, etcdctl   metadata and leases: Debian trixie's 3.5 (Debian 12 has 3.4). On an older Debian its packages are
#                   unpacked here, from the host's own mirror; the host's apt sources and packages stay as they are
#   nats-server     blobs: 2.14.9, built from its Go module. Debian's own are too old: 2.9 doesn't sync each write,
#                   2.10 acknowledged what a paused leader had lost
# Needs neither root nor a registry of binaries. What is there in these versions is left alone, so that a second run
# takes no time. What can't be had is named in .stores/missing, and the exit status is 1: the tests of these stores skip
# then, and `labda doctor` says the same.
set -eu

ETCD_SUITE=trixie ETCD_SERIES=3.5
NATS=2.14.9
GO_OLDEST=1.26 GO_TOOLCHAIN=go1.26.10     # what NATS' module asks for, and what is fetched where Go is older

root=$(cd "$(dirname "$0")/.." && pwd)
stores=$root/.stores bin=$root/.stores/bin
mkdir -p "$bin"
scratch=$(mktemp -d "$stores/scratch.XXXXXX")
trap 'chmod -R u+w "$scratch" && rm -rf "$scratch"' EXIT
missing=

lack() {
    missing="$missing$1: $2
"
    echo "stores     $1 could not be installed: $2" >&2
}

# What the host's own packages come from.
mirror() {
    cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' | grep -v security | head -n 1
}

# apt with lists and a cache of its own, which knows the next release only.
next_apt() {
    "$@" -o Dir::Etc::SourceList="$scratch/next.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$scratch/lists" -o Dir::Cache="$scratch/cache" -o APT::Sandbox::User=root \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -qq
}

# unpack PACKAGE...: of that release, below $scratch/root.
unpack() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "this is no Debian"
        return 1
    fi
    if [ ! -d "$scratch/lists" ]; then
        mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/root"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $ETCD_SUITE main" \
            >"$scratch/next.list"
        next_apt apt-get update >"$scratch/log" 2>&1 || { tail -n 1 "$scratch/log"; return 1; }
    fi
    for package in "$@"; do
        (cd "$scratch" && next_apt apt-get download "$package" >log 2>&1) || { tail -n 1 "$scratch/log"; return 1; }
        dpkg-deb -x "$scratch/$package"_*.deb "$scratch/root"
    done
}

install_etcd() {
    unpack etcd-server etcd-client || return 1
    install -m 755 "$scratch/root/usr/bin/etcd" "$scratch/root/usr/bin/etcdctl" "$bin"
}

# The Go to build with: the host's, or the next release's, which fetches a newer one as a module.
go_command() {
    if command -v go >/dev/null; then
        found=$(go env GOVERSION | sed 's/^go//')
        [ "$(printf '%s\n' "$GO_OLDEST" "$found" | sort -V | head -n 1)" = "$GO_OLDEST" ] && { command -v go; return; }
    fi
    unpack golang-1.24-go golang-1.24-src >&2 || return 1
    echo "$scratch/root/usr/lib/go-1.24/bin/go"
}

install_nats() {
    go=$(go_command) || { echo "there is no Go $GO_OLDEST or later, nor could Debian's be had"; return 1; }
    case $go in "$scratch"/*) export GOTOOLCHAIN=$GO_TOOLCHAIN GOROOT="$scratch/root/usr/lib/go-1.24" ;; esac
    GOBIN="$scratch" CGO_ENABLED=0 GOFLAGS=-buildvcs=false \
        "$go" install "github.com/nats-io/nats-server/v2@v$NATS" >"$scratch/log" 2>&1 ||
        { tail -n 1 "$scratch/log"; return 1; }
    install -m 755 "$scratch/nats-server" "$bin"
}

# is PROGRAM VERSION: whether the one in place is of that version.
is() { [ -x "$bin/$1" ] && "$bin/$1" --version 2>/dev/null | head -n 1 | grep -q "$2"; }

if ! is etcd "Version: $ETCD_SERIES\." || [ ! -x "$bin/etcdctl" ]; then
    why=$(install_etcd) || lack etcd "$why"
fi
if ! is nats-server "v$NATS\$"; then
    why=$(install_nats) || lack nats-server "$why"
fi

if [ -n "$missing" ]; then
    printf '%s' "$missing" >"$stores/missing"
    exit 1
fi
rm -f "$stores/missing"
