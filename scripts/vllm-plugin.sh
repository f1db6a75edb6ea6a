#!/usr/bin/env bash
# Makes the environment in which vLLM has our plugin: .vllm-plugin, some megabytes over vLLM's own (scripts/vllm.sh),
# which stays as it is for the benches that compare with plain vLLM.
#
# VLLM_PLUGIN_FOLDER   where to make it, if not in .vllm-plugin
# VLLM_FOLDER, PYTHON, TORCH_INDEX_URL: see scripts/vllm.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/vllm.sh
vllm=$(cd "${VLLM_FOLDER:-.vllm}" && pwd)
folder=${VLLM_PLUGIN_FOLDER:-.vllm-plugin}
wanted=requirements/vllm-plugin.txt
stamp=$folder/.made-$(cat "$wanted" vllm_plugin/pyproject.toml scripts/vllm-plugin.sh <(echo "$vllm" "$PWD") | cksum | tr ' ' '-')
[ -e "$stamp" ] && exit 0
pip() { "$folder/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

rm -rf "$folder"
"$vllm/bin/python" -m venv "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
theirs=$("$vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Ours of the tree, then vLLM's; what hope-server asks for beyond both is not needed by what the plugin imports.
printf '%s\n' "$PWD" "$PWD/kernels" "$PWD/memory_store" >"$site/hope.pth"
echo "$theirs" >"$site/vllm.pth"
echo "vllm-plugin: installing $(grep -cE '^[a-z0-9].*==' "$wanted") packages into $folder …"
pip install --quiet --no-deps --require-hashes -r "$wanted"
# An old setuptools of a fresh environment would hide vLLM's, which knows how to build this.
pip uninstall --quiet --yes setuptools 2>/dev/null || true
pip install --quiet --no-deps --no-build-isolation --editable vllm_plugin
VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 "$folder/bin/python" -c 'import hope_vllm; hope_vllm.register()' >/dev/null
touch "$stamp"
