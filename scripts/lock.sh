#!/usr/bin/env bash
# Rewrites requirements/*.txt from their .in files: exact versions, hashes, no addresses.
# Needs `uv` on the PATH or in $UV. Keeps the versions that are locked already; pass --upgrade to move them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=${UV:-uv}
if ! command -v "$uv" >/dev/null; then
  echo "lock: uv is not installed; run: python3 -m pip install uv" >&2
  exit 1
fi

compile() {
  "$uv" --config-file requirements/lock.toml pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
    --generate-hashes --no-emit-package torch --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "make lock" "$@"
}

echo "locking requirements/runtime.txt …"
compile requirements/runtime.in --output-file requirements/runtime.txt "$@"
echo "locking requirements/dev.txt …"
compile requirements/dev.in --output-file requirements/dev.txt "$@"
for clients in conformance-openai conformance-litellm conformance-schemathesis containers load router peers triton-3.6.0 triton-3.7.1 vllm-cpu vllm-plugin; do
  echo "locking requirements/$clients.txt …"
  compile "requirements/$clients.in" --output-file "requirements/$clients.txt" "$@"
done
