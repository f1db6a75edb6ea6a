#!/usr/bin/env bash
# Makes the environment that drives the users of load tests, requirements/load.txt, in .load.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=requirements/load.txt
stamp=.load/.made-$(cksum <"$wanted" | tr ' ' '-')
[ -e "$stamp" ] && exit 0
echo "load: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into .load …"
rm -rf .load
"${VENV:-.venv}/bin/python" -m venv .load
.load/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$wanted"
.load/bin/python -c 'import locust'
touch "$stamp"
