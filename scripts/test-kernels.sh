#!/usr/bin/env bash
# Checks the GPU kernels without a GPU, for every Triton version that is supported: their results in Triton's interpreter,
# then what each shipped configuration compiles to for sm_80 and sm_90. Arguments go to pytest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/triton.sh || exit 1
root=$PWD
export PYTHONPATH=$root:$root/kernels:$root/memory_store:$root/clients:$root/tests/support OMP_NUM_THREADS=1
failed=()
for wanted in requirements/triton-*.txt; do
  version=${wanted#requirements/triton-}
  version=${version%.txt}
  python=.triton/$version/bin/python
  echo "test-kernels: triton $version, interpreter …"
  TRITON_INTERPRET=1 "$python" -m pytest -q -p no:cacheprovider tests/kernels/gpu "$@" || failed+=("$version: tests")
  echo "test-kernels: triton $version, compiled for sm_80 and sm_90 …"
  "$python" -m hope_kernels.aot || failed+=("$version: compilation")
done
echo "test-kernels: triton 3.6.0, dry run of bench/gpu.py …"
.triton/3.6.0/bin/python bench/gpu.py --dry-run >.triton/dry-run.txt 2>&1 || { cat .triton/dry-run.txt; failed+=("3.6.0: dry run of bench/gpu.py"); }
if [ ${#failed[@]} -gt 0 ]; then
  printf 'test-kernels: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "test-kernels: passed"
