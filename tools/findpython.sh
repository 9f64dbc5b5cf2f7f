# SPDX-License-Identifier: BSD-3-Clause
# Sourced: find_python prints the interpreter $PYTHON, or the first suitable one.

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
