#!/usr/bin/env bash
# Checks the GPU kernels without a GPU, for every Triton version that is supported: their results in Triton's interpreter,
# then what each shipped configuration compiles to for sm_80 and sm_90. Arguments go to pytest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/triton.sh || exit 1
root=$PWD
export PYTHONPATH=$root:$root/kernels:$root/memory_store:$root/clients:$root/tests/support OMP_NUM_THREADS=1

# What one version says goes to .triton/VERSION.log, for both run side by side.
check() {
  local version=$1 python=.triton/$1/bin/python failed=0
  shift
  echo "test-kernels: triton $version, interpreter …"
  TRITON_INTERPRET=1 "$python" -m pytest -q -p no:cacheprovider tests/kernels/gpu "$@" || failed=1
  echo "test-kernels: triton $version, compiled for sm_80 and sm_90 …"
  "$python" -m hope_kernels.aot || failed=1
  if [ "$version" = 3.6.0 ]; then
    echo "test-kernels: triton $version, dry run of bench/gpu.py …"
    "$python" bench/gpu.py --dry-run || failed=1
  fi
  return "$failed"
}

versions=() pids=()
for wanted in requirements/triton-*.txt; do
  version=${wanted#requirements/triton-}
  versions+=("${version%.txt}")
done
for version in "${versions[@]}"; do
  echo "test-kernels: triton $version: tests in the interpreter, then every configuration compiled (.triton/$version.log) …"
  check "$version" "$@" >".triton/$version.log" 2>&1 &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM
failed=()
for place in "${!versions[@]}"; do
  wait "${pids[$place]}" || failed+=("${versions[$place]}")
  cat ".triton/${versions[$place]}.log"
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'test-kernels: failed with triton %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "test-kernels: passed"
