#!/bin/sh
# Builds .venv-peers: mergekit in an environment of its own. Does nothing when it is already as requirements.txt asks.
#     benchmarks/peers/build.sh [pip options, e.g. --find-links FOLDER where torch's CPU wheel lies; or set PIP_FIND_LINKS]
#     PEERS_VENV=path  PEERS_PYTHON=python3.12   to put it elsewhere, or on another Python (3.11 or later)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${PEERS_VENV:-$root/.venv-peers}
stamp=$venv/.built-from

if [ -x "$venv/bin/mergekit-yaml" ] && cmp -s "$here/requirements.txt" "$stamp"; then
    echo "$venv is up to date"
    exit 0
fi

if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
    echo "$venv exists and is not a virtual environment: not touched" >&2
    exit 1
fi
python=
for candidate in ${PEERS_PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "no Python 3.11 or later with venv and pip found: name one in PEERS_PYTHON" >&2
    exit 1
fi
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$@" -r "$here/requirements.txt"
"$venv/bin/python" -m pip check
"$venv/bin/mergekit-yaml" --help > /dev/null
cp "$here/requirements.txt" "$stamp"
echo "$venv is ready"
