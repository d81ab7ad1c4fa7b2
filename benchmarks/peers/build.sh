#!/bin/sh
# Builds .venv-peers: mergekit and FusionBench in an environment of their own. Does nothing that is done already.
#     benchmarks/peers/build.sh [pip options, e.g. --find-links FOLDER where torch's CPU wheel lies; or set PIP_FIND_LINKS]
#     PEERS_VENV=path  PEERS_PYTHON=python3.12   to put it elsewhere, or on another Python (3.11 or later)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${PEERS_VENV:-$root/.venv-peers}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$@"
}

if ! { [ -x "$venv/bin/mergekit-yaml" ] && cmp -s "$here/requirements.txt" "$venv/.built-from"; }; then
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
    pip_install "$@" -r "$here/requirements.txt"
    "$venv/bin/python" -m pip check
    "$venv/bin/mergekit-yaml" --help > /dev/null
    cp "$here/requirements.txt" "$venv/.built-from"
fi

if ! cmp -s "$here/requirements-fusionbench.txt" "$venv/.fusionbench-from"; then
    pip_install "$@" -r "$here/requirements-fusionbench.txt"
    "$venv/bin/python" -c 'from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel'
    cp "$here/requirements-fusionbench.txt" "$venv/.fusionbench-from"
fi
echo "$venv is ready"
