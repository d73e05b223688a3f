#!/usr/bin/env bash
# Tries the README's two commands on a bare Debian: a new system in a folder, with one user and only the packages that the
# README names, into which the last commit of this checkout is cloned. As root, on Debian or a distribution based on it:
#
#   scripts/fresh_machine.sh bookworm                                     # make demo, then make test, on Debian 12
#   FIRN_PYTHON=/opt/python3.11 scripts/fresh_machine.sh trixie           # Debian 13, with a Python 3.11 brought along
#   scripts/fresh_machine.sh bookworm "make demo" "make test PYTEST_ARGS='tests/test_splits.py -x'"    # other commands
#
# FIRN_PYTHON     the folder of a Python 3.11 (with bin/python3.11 in it) to copy to /usr/local. Without it, setup.sh fetches one if
#                 the system has no Python 3.11.
# PYTEST_ARGS     arguments of pytest, for make test.
# ONEDNN_MAX_CPU_ISA=AVX2, TF_ENABLE_ONEDNN_OPTS=0    TensorFlow computes as on an older processor.
# FRESH_FOLDER    the folder of the new system (about 10 GB), which must not exist; default: a new one in /var/tmp.
# FRESH_KEEP=1    keeps the folder.
# FRESH_MIRROR    the Debian mirror; default: the first of this machine's apt sources.
#
# This machine's settings of pip, uv, proxies and certificates are copied. All mounts and processes are in namespaces of their own,
# and end with them, however this script ends.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

packages=python3,python3-venv,make,g++,git
carried='^(PIP_|UV_|(http|https|no|all|HTTP|HTTPS|NO|ALL)_(proxy|PROXY)=|SSL_CERT_|REQUESTS_CA_BUNDLE=|CURL_CA_BUNDLE=|GIT_SSL_|PYTHONDONTWRITEBYTECODE=|PYTEST_ARGS=|FIRN_NO_SKIPS=|ONEDNN_MAX_CPU_ISA=|TF_ENABLE_ONEDNN_OPTS=)'

say() { printf 'fresh_machine: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

install_debootstrap() {
    command -v debootstrap >/dev/null && return
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends debootstrap debian-archive-keyring; } >/dev/null \
        || fail "debootstrap is missing, and apt-get could not install it."
}

find_mirror() {
    # shellcheck disable=SC2016  # the dollars are apt-get's
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep --max-count 1 -v security \
        || fail "no mirror in this machine's apt sources. Name one in FRESH_MIRROR."
}

bring() {  # FROM TO NAME...: copies files and folders below FROM, if they exist, to TO in the new system
    local from=$1 to=$2 name names=()
    shift 2
    for name in "$@"; do
        if [ -e "$from/$name" ]; then names+=("$name"); fi
    done
    [ "${#names[@]}" -gt 0 ] || return 0
    # Unpacked inside the new system, so that none of its links leads out of it.
    tar --create --dereference --ignore-failed-read --directory "$from" "${names[@]}" | chroot "$root" tar --extract --directory "$to"
}

bring_settings() {
    local value
    bring / / etc/resolv.conf etc/hosts etc/pip.conf etc/uv etc/ssl/certs/ca-certificates.crt
    bring "$HOME" /home/firn .config/pip .config/uv .pip
    apt-config dump | grep -E '^Acquire::(http|https|ftp|Check|Retries)' > "$root/etc/apt/apt.conf.d/90host" || true
    env | grep -E "$carried" > "$root/etc/fresh-environment" || true
    while IFS== read -r _ value; do
        case $value in /*) bring / / "${value#/}" ;; esac
    done < "$root/etc/fresh-environment"
}

bring_python() {
    [ -n "${FIRN_PYTHON:-}" ] || return 0
    # Copied as `make altinstall` does: a virtual environment made from a link to another folder would find no standard library.
    cp -a "$FIRN_PYTHON"/bin/python3.11 "$root/usr/local/bin/"
    cp -a "$FIRN_PYTHON"/lib/python3.11 "$FIRN_PYTHON"/lib/libpython3* "$root/usr/local/lib/"
    rm -rf "$root/usr/local/lib/python3.11/site-packages"
    chroot "$root" ldconfig
    chroot "$root" python3.11 -c 'import ssl, sqlite3, ctypes, lzma, bz2, zlib' || fail "the Python of $FIRN_PYTHON does not run in the new system."
}

in_fresh() {  # COMMAND: runs it as the user, in the clone in the new system, with a clean environment
    local environment
    mapfile -t environment < "$root/etc/fresh-environment"
    # shellcheck disable=SC2016  # for the inner shell
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sysfs "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
        chroot --userspec=firn:firn "$root" env -i "$@"
    ' _ "$root" HOME=/home/firn USER=firn LANG=C.UTF-8 TERM="${TERM:-dumb}" PATH=/usr/local/bin:/usr/bin:/bin "${environment[@]}" \
        bash -c "cd /home/firn/firn && $1"
}

clean() {
    if [ -n "${FRESH_KEEP:-}" ]; then say "kept in $root"; else rm -rf --one-file-system "$root"; fi
}

[ "$#" -gt 0 ] || fail "no suite given, such as bookworm (Debian 12) or trixie (Debian 13)."
[ "$(id -u)" = 0 ] || fail "only root can make a system in a folder."
suite=$1
shift
[ "$#" -gt 0 ] || set -- "make demo" "make test"
[ -z "${FIRN_PYTHON:-}" ] || [ -x "$FIRN_PYTHON/bin/python3.11" ] || fail "FIRN_PYTHON must be a folder with bin/python3.11 in it. Got $FIRN_PYTHON."
[ -z "$(git status --porcelain --untracked-files=no)" ] || say "note: changes that are not committed are not tried."

root=${FRESH_FOLDER:-$(mktemp -d -u /var/tmp/firn-fresh-XXXXXX)}
[ ! -e "$root" ] || fail "$root exists already."
install_debootstrap
mirror=${FRESH_MIRROR:-$(find_mirror)}
trap clean EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$root"
root=$(realpath "$root")
say "making $suite with $packages in $root"
started=$SECONDS
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" > "$root.log" 2>&1 \
    || { tail -n 20 "$root.log" >&2; fail "debootstrap failed; its output is in $root.log."; }
rm "$root.log"
chroot "$root" useradd --create-home --shell /bin/bash firn
bring_settings
bring_python
git clone --quiet "file://$PWD" "$root/home/firn/firn"
chroot "$root" chown -R firn:firn /home/firn
say "made in $((SECONDS - started)) s: $(. "$root/etc/os-release" && echo "$PRETTY_NAME"), $(chroot "$root" g++ --version | head -n 1)"

for command in "$@"; do
    say "$command"
    started=$SECONDS
    in_fresh "$command" || fail "\`$command\` failed on $suite after $((SECONDS - started)) s."
    say "\`$command\` passed on $suite in $((SECONDS - started)) s"
done
