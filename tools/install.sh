#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Called by `make install` and `make uninstall`, see doc/operators/install.rst:
#     tools/install.sh install|uninstall
# Each version gets an environment of its own, PREFIX-VERSION, and PREFIX is a link to the one in use: an
# upgrade changes nothing under a running daemon, and the earlier version stays for a roll-back.
# Each step may be repeated. With DESTDIR, nothing outside of it is changed.
set -euo pipefail
umask 022 # the services read everything as another user
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/findpython.sh
action=${1:?usage: tools/install.sh install|uninstall}
PREFIX=${PREFIX:-/opt/ppdaemon} DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX%/} DESTDIR=${DESTDIR%/} EXTRAS=${EXTRAS:-} PIPFLAGS=${PIPFLAGS:-}
link=$DESTDIR$PREFIX

fail() {
  printf 'make %s: %s\n' "$action" "$*" >&2
  exit 1
}

step() {
  echo "+ $*"
  "$@" || fail "this step failed: $*"
}

on_this_host() { [ -z "$DESTDIR" ]; }
with_systemd() { on_this_host && [ -d /run/systemd/system ]; }

for path in "$PREFIX" "$DESTDIR"; do
  case $path in
    *[[:space:]]*) fail "no spaces are allowed in '$path'" ;;
    /* | '') ;;
    *) fail "$path is not an absolute path" ;;
  esac
done
if on_this_host && [ "$(id -u)" != 0 ]; then fail "needs root, or DESTDIR=FOLDER"; fi

version() {
  local number commit
  number=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' ppdaemon/__init__.py)
  # Of root, git requires that it may read a checkout of another user.
  commit=$(git -c safe.directory="$PWD" describe --always --dirty --exclude='*' 2>/dev/null) || true
  echo "$number${commit:+-$commit}"
}

install() {
  local python base venv
  if [ -e "$link" ] && [ ! -L "$link" ]; then
    fail "$link is not a link to a version: it was not made by 'make install'." \
      "Rename it (its programs cannot be used then) or choose another PREFIX="
  fi
  python=$(find_python) ||
    fail "outside of /root and /home, for example: uv python install --install-dir /opt/python 3.13"
  base=$("$python" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
  case $base/ in
    /root/* | /home/* | /run/user/*)
      fail "the services cannot read the Python in $base (ProtectHome=)." \
        "Install one elsewhere, and name it: PYTHON=/opt/python/bin/python3.13"
      ;;
  esac
  venv=$link-$(version)
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    step "$python" -m venv --clear "$venv"
  fi
  rm -rf build/lib build/bdist.* # modules of an earlier version would be installed too
  # shellcheck disable=SC2086
  step "$venv/bin/python" -m pip install -q --disable-pip-version-check $PIPFLAGS ".${EXTRAS:+[$EXTRAS]}"
  if [ -n "$DESTDIR" ]; then # scripts name their interpreter by the path that it will have
    grep -rlIZ -- "$DESTDIR/" "$venv/bin" "$venv/pyvenv.cfg" | xargs -0r sed -i "s|$DESTDIR/|/|g"
  fi
  step "$venv/bin/python" "$venv/bin/ppctl" install-files "$DESTDIR/" --prefix "$PREFIX"
  # Last: whoever starts the daemon before this gets the earlier version, whole.
  step ln -sfnT "$(basename "$venv")" "$link"
  on_this_host || return 0
  step systemd-sysusers ppdaemon.conf
  step systemd-tmpfiles --create ppdaemon.conf
  step /lib/systemd/systemd-sysctl 60-ppdaemon.conf
  if with_systemd; then step systemctl daemon-reload; fi
  cat <<NEXT

Installed $(readlink "$link"); nothing was started. Next:
  1. edit /etc/ppdaemon/ppdaemon.yaml on a node, /etc/ppdaemon/pprelay.yaml on the relay's host
  2. make the central repo, see doc/operators/systemd.rst
  3. ppdaemon check-config --config /etc/ppdaemon/ppdaemon.yaml
  4. systemctl enable --now pprelay; systemctl enable --now ppdaemon
NEXT
}

uninstall() {
  local name venv
  for name in ppweb ppdaemon pprelay ppbridge.socket ppbridge; do
    if systemctl -q "--root=$DESTDIR/" is-enabled "$name" 2>/dev/null ||
      { with_systemd && systemctl -q is-active "$name"; }; then
      fail "$name is enabled or runs: systemctl disable --now $name"
    fi
  done
  # Nothing uses it without the daemon, and its unit is deleted.
  if with_systemd && systemctl -q is-active run-ppramdisk.mount; then
    step systemctl stop run-ppramdisk.mount
    step rmdir /run/ppramdisk
  fi
  for venv in "$link" "$link"-*; do
    if [ -x "$venv/bin/ppctl" ]; then
      step "$venv/bin/python" "$venv/bin/ppctl" install-files "$DESTDIR/" --remove
      break
    fi
  done
  # Only environments of this PREFIX: those of PREFIX-dev and renamed ones are not its.
  for venv in "$link"-[0-9]*; do
    if [ -x "$venv/bin/ppctl" ] && [ -e "$venv/pyvenv.cfg" ] && [ ! -L "$venv" ]; then step rm -rf "$venv"; fi
  done
  if [ -L "$link" ]; then step rm "$link"; fi
  if with_systemd; then step systemctl daemon-reload; fi
  echo "The user ppdaemon, /var/lib/ppdaemon and changed files of /etc/ppdaemon are left."
}

case $action in
  install | uninstall) "$action" ;;
  *) fail "unknown action" ;;
esac
