#!/usr/bin/env bash
# Tests the plugin in the environment of scripts/vllm-plugin.sh; arguments go to pytest.
# With them goes a folder with the default model and an open Titans branch, which .venv makes: GGUF files are read there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

plugin=$(cd "${VLLM_PLUGIN_FOLDER:-.vllm-plugin}" && pwd)
venv=${VENV:-.venv}
model=$plugin/smollm2-gate-4
PYTHONPATH="$PWD:$PWD/kernels:$PWD/memory_store:$PWD/clients" "$venv/bin/python" bench/retrofit.py "$model" --gate 4 --export
echo "test-vllm: running pytest …"
RETROFIT_FOLDER=$model OMP_NUM_THREADS=1 \
  exec "$plugin/bin/python" -m pytest -q -c vllm_plugin/pyproject.toml --rootdir vllm_plugin vllm_plugin/tests "$@"
