#!/usr/bin/env bash
# Checks the models in docs/protocol with Spin: the protocol as it is must hold, and each wrong one must be found wrong.
# It takes spin and a C compiler, two processes with up to 0.8 GB each, and a minute and a half of computing time.
#
#   scripts/check_protocol.sh                                    everything
#   scripts/check_protocol.sh quick                              all but the five longest checks
#   scripts/check_protocol.sh trace stream -DNO_PIN              the steps that lead a wrong protocol into its fault
set -euo pipefail

fail() { printf 'check_protocol: %s\n' "$*" >&2; exit 1; }

command -v spin >/dev/null || fail "spin is missing. Debian, Ubuntu: apt-get install spin"
command -v gcc >/dev/null || fail "gcc is missing. Debian, Ubuntu: apt-get install gcc libc6-dev"
models=$(cd "$(dirname "$0")/../docs/protocol" && pwd)

# EXPECTED MODEL FLAGS...; `complete`: it holds, and every statement of the model is reached. The five longest come first.
checks() {
    local wrong
    writers() { echo publication -DRUNS="$1" -DCOMPACTIONS="$2" -DVACUUMS="$3" -DALL_IMAGES="$4"; }
    echo holds "$(writers 3 0 1 1)"
    echo complete "$(writers 3 0 0 3)"
    echo complete stream
    echo holds "$(writers 2 0 2 1)"
    echo holds "$(writers 2 1 1 1)"
    echo complete "$(writers 2 0 1 3)"
    echo holds "$(writers 2 1 0 3)"
    echo holds "$(writers 1 1 1 3)"
    echo complete networks
    for wrong in OVERWRITE NO_BASE_CHECK CLEAN_UNLISTED DELETE_FIRST FOLDER_RENAME REMOVE_IF_EMPTY STATE_WITHOUT_BASE; do
        echo fails "$(writers 2 0 1 3)" -D$wrong
    done
    echo fails "$(writers 1 1 1 3)" -DNO_GRACE
    for wrong in NETWORKS VACUUM_NETWORKS; do echo fails networks -D$wrong; done
    for wrong in NO_PIN OVERWRITE_PIN TRUST_PIN LABEL_ALL NO_BASE_CHECK COMMIT_FIRST; do echo fails stream -D$wrong; done
}

build() {  # MODEL FLAGS...: the checker of a model, as ./pan
    local model=$1
    shift
    spin "$@" -a "$models/$model.pml" > spin.log && gcc -w -O2 -DSAFETY -DCOLLAPSE -DMEMLIM=900 -o pan pan.c \
        || { cat spin.log >&2; fail "$model $*: no checker could be made"; }
}

one() {  # EXPECTED MODEL FLAGS...: checks one model
    local expected=$1 found=unclear
    shift
    build "$@"
    ./pan -E -m10000 -w24 > pan.log 2>&1 || true
    if grep -q 'errors: 0$' pan.log && ! grep -qE 'max search depth|out of memory|memory limit' pan.log; then
        found=holds
        if ! grep -E '\([0-9]+ of [0-9]+ states\)' pan.log | grep -qv '(0 of'; then found=complete; fi
    elif grep -q 'assertion violated' pan.log; then
        found=fails
    fi
    if [ "$expected" = holds ] && [ "$found" = complete ]; then found=holds; fi
    printf '%-8s %9s states  %s\n' "$found" "$(awk '/states, stored/ { print $1 }' pan.log)" "$*"
    [ "$found" = "$expected" ] || { cat pan.log >&2; fail "$*: expected \"$expected\", found \"$found\""; }
}

trace() {  # MODEL FLAGS...: prints the shortest way into a fault
    build "$@"
    ./pan -E -i -m10000 -w24 > pan.log 2>&1 || true
    [ -e "$1.pml.trail" ] || { cat pan.log; fail "$*: no fault was found"; }
    spin "${@:2}" -k "$1.pml.trail" -p -g -l "$models/$1.pml"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "$folder"
case "${1:-}" in
one | trace) "$@" ;;
quick) checks | tail -n +6 | xargs -P 2 -L 1 "$script" one ;;
"") checks | xargs -P 2 -L 1 "$script" one ;;
*) fail "unknown: $1" ;;
esac
