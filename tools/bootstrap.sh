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

. tools/findpython.sh

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
