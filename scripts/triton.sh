#!/usr/bin/env bash
# Makes .triton/VERSION for every requirements/triton-VERSION.txt: the compilers that the GPU kernels must pass. torch, pytest
# and the rest come from our environment, ./.venv or $VENV.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${VENV:-.venv}/bin/python
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

for wanted in requirements/triton-*.txt; do
  version=${wanted#requirements/triton-}
  version=${version%.txt}
  home=.triton/$version
  ours=$(packages "$python")
  stamp=$home/.made-$( (cat "$wanted" requirements/torch.txt && echo "$ours") | cksum | tr ' ' '-')
  [ -e "$stamp" ] && continue
  echo "triton: installing $version into $home …"
  rm -rf "$home"
  "$python" -m venv "$home"
  "$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$wanted"
  # Looked through last: what is pinned here comes first.
  echo "$ours" >"$(packages "$home/bin/python")/ours.pth"
  "$home/bin/python" -c "import pytest, torch, triton; assert triton.__version__ == '$version', triton.__version__"
  touch "$stamp"
done
