#!/usr/bin/env bash
# Makes the environment of other people's memory layers, requirements/peers.txt, in .peers. They compute with our torch:
# theirs would be another build, and a comparison of builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=requirements/peers.txt
stamp=.peers/.made-$(cat "$wanted" requirements/torch.txt | cksum | tr ' ' '-')
[ -e "$stamp" ] && exit 0
python=${VENV:-.venv}/bin/python
echo "peers: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into .peers …"
rm -rf .peers
"$python" -m venv .peers
.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$wanted"
# Looked through last: what the peers pin comes first, torch comes from here.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(.peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
.peers/bin/python -c 'import nested_learning, titans_pytorch, torch'
touch "$stamp"
