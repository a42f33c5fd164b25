#!/usr/bin/env bash
# Print the path of a CPython >= 3.11 that can make a virtual environment. MILLSTREAM_PYTHON goes first if set.
#
# Every candidate is run: a shim of pyenv may stand on the path and fail, and Debian's own python3 comes without ensurepip
# until python3-venv is installed.
set -euo pipefail

probe='
import ensurepip, sys, sysconfig, venv
usable = sys.version_info >= (3, 11) and sys.implementation.name == "cpython"
sys.exit(0 if usable and not sysconfig.get_config_var("Py_GIL_DISABLED") else 1)
'

shopt -s nullglob
pyenv=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9]*/bin/python)

for candidate in ${MILLSTREAM_PYTHON:+"$MILLSTREAM_PYTHON"} python3 python3.11 python3.12 python3.13 python3.14 "${pyenv[@]}"; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "$probe" >/dev/null 2>&1; then
        "$candidate" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done

echo "no CPython >= 3.11 with the modules venv and ensurepip found (Debian: apt-get install python3-venv)" >&2
exit 1
