#!/usr/bin/env bash
# Makes the environments of other people's clients, one for each file requirements/conformance-*.txt, in .conformance.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for wanted in requirements/conformance-*.txt; do
  name=${wanted#requirements/conformance-}
  name=${name%.txt}
  folder=.conformance/$name
  stamp=$folder/.made-$(cksum <"$wanted" | tr ' ' '-')
  [ -e "$stamp" ] && continue
  echo "conformance: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into $folder …"
  rm -rf "$folder"
  .venv/bin/python -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$wanted"
  touch "$stamp"
done
