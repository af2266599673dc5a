#!/bin/sh
# The Debian 12 packages that labda and its tests need, with what each is for; `--bench` adds what `make bench` needs,
# `--spec` what `make spec` does.
# `--install` installs what is missing (root).
set -eu

install="" bench="" spec=""
for argument in "$@"; do
    case $argument in
        --install) install=1 ;;
        --bench) bench=1 ;;
        --spec) spec=1 ;;
        *) echo "usage: $0 [--bench] [--spec] [--install]" >&2; exit 2 ;;
    esac
done

packages='
ca-certificates   pip downloads over TLS
gcc               compiles the init of sandboxes, at set-up
git               the checkout itself
libc6-dev         headers for that
make              the entry points: make run, make test
python3           3.11 or later, runs everything; each further python3.X on the host becomes a runtime
python3-venv      the virtual environment
util-linux        setpriv: ends the processes of a cluster when their supervisor is killed
'
[ -z "$bench" ] || packages="${packages}wrk               load for the benchmarks, replaying one signed request
"
[ -z "$spec" ] || packages="${packages}default-jre-headless   runs TLC, the model checker of docs/specs
"

missing=$(printf '%s' "$packages" | while read -r name _; do
    [ -n "$name" ] || continue
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
done)

printf '%s\n' "$packages"
if [ -z "$missing" ]; then
    echo "all of them are installed"
elif [ -n "$install" ]; then
    # shellcheck disable=SC2086  # one word per package
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
else
    echo "missing: $(echo "$missing" | tr '\n' ' ')"
    echo "get them: $0${bench:+ --bench}${spec:+ --spec} --install"
fi
