#!/usr/bin/env bash
# Makes .router with the routers that `make scale` knows: vllm-router and Envoy, requirements/router.txt, and nginx where
# Debian's can be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/debian-tool.sh

wanted=requirements/router.txt
stamp=.router/.made-$(cksum <"$wanted" | tr ' ' '-')
[ -e "$stamp" ] && exit 0
echo "router: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into .router …"
rm -rf .router
"${VENV:-.venv}/bin/python" -m venv .router
.router/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$wanted"
nginx=$(debian_tool .router/debian nginx nginx)
if [ -n "$nginx" ]; then
  ln -sf "$nginx" .router/bin/nginx
else
  echo "router: nginx is missing (Debian, Ubuntu: apt-get install nginx); the others are there"
fi
.router/bin/python -m vllm_router.launch_router --help >/dev/null
touch "$stamp"
