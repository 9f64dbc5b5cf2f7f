#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Makes .venv (.venv-ml for ml) and installs this checkout with one of its extras into it:
#     tools/bootstrap.sh demo|test|dev|doc|ml
# The Makefile calls it where .venv/.installed-EXTRA is missing or older than
# setup.py. PYTHON=... names the interpreter; default: the first suitable one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:?usage: tools/bootstrap.sh demo|test|dev|doc|ml}
venv=.venv
# Libraries of several GB, which must not change what the other tests import.
[ "$extra" = ml ] && venv=.venv-ml

# A pyenv shim exists for versions that are not active, and fails only when
# called; Debian's python3 may come without ensurepip. So each is tried.
usable() {
  command -v "$1" >/dev/null 2>&1 &&
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3}; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  cat >&2 <<'MESSAGE'
ppdaemon needs Python 3.12 or newer with its venv module, and none was found
(tried: $PYTHON if set, else python3.14, python3.13, python3.12, python3). Ways to get one:
    pyenv install 3.13 && pyenv local 3.13
    uv python install 3.13 && make PYTHON="$(uv python find 3.13)" ...
    apt install python3.13 python3.13-venv      or your distribution's packages
MESSAGE
  return 1
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi

pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check)
echo "installing ppdaemon[$extra] into $venv (about a minute the first time)"
# One setuptools for this and for building the checkout saves a second download.
"${pip[@]}" --upgrade "setuptools>=77"
"${pip[@]}" --no-build-isolation --editable ".[$extra]"

# dev holds test, and that holds demo; doc holds demo.
case $extra in
  dev) touch "$venv"/.installed-{demo,test,dev} ;;
  test) touch "$venv"/.installed-{demo,test} ;;
  doc) touch "$venv"/.installed-{demo,doc} ;;
  *) touch "$venv/.installed-$extra" ;;
esac
