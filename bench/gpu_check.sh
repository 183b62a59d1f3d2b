#!/usr/bin/env bash
# All that must hold on a machine with a GPU, in one command and under ten minutes:
#
#   bash bench/gpu_check.sh [FOLDER]
#
# builds for this GPU, runs the tests marked cuda, compute-sanitizer's memcheck and racecheck on a short run, and
# bench/gpu.py; the logs, the figures and summary.json are left in FOLDER (gpu-check). The machine needs nvcc, a C++
# compiler, CMake and ninja and, in its python3, CuPy, torch, the packages of pyproject.toml's [build-system] and
# dependencies, pytest, hypothesis, threadpoolctl and matplotlib; no network. Nothing is installed into that python3.
# Exit status: 0 if nothing failed, 1 if something did, 2 if nothing can run here.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
die() { echo "gpu_check.sh: $*" >&2; exit 2; }
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin
nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || die "no NVIDIA GPU here, says nvidia-smi"
command -v nvcc >/dev/null || die "no CUDA compiler here: nvcc is neither on PATH nor in CUDA_HOME"

folder=${1:-$root/gpu-check}
mkdir -p "$folder" || die "cannot make the folder $folder"
folder=$(cd "$folder" && pwd)
cd "$root" || exit 2
rm -f "$folder"/{summary.json,build.log,tests.log,tests.xml,sanitizer.log,bench.log,gpu.json,gpu.png}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 COLUMNS=120
# Plugins that happen to be on the machine have no say in the tests.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1

steps=()  # name, exit status or nothing, seconds, what came of it; four words for each
failed=0

note() {
  steps+=("$@")
  python3 - "$folder/summary.json" "${steps[@]}" <<'PYTHON'
import json
import sys

path, *words = sys.argv[1:]
steps = [
    {"step": name, "status": int(status) if status else None, "seconds": int(seconds), "result": result}
    for name, status, seconds, result in zip(*[iter(words)] * 4)
]
with open(path, "w") as file:
    print(json.dumps(steps, indent=1), file=file)
PYTHON
}

# step NAME LOG SECONDS PROOF COMMAND...: passed if the command ends in time, with status 0, and printed PROOF.
step() {
  local name=$1 log=$2 limit=$3 proof=$4 start=$SECONDS status=0 line result
  shift 4
  echo "== $name, at most $limit s"
  timeout -k 5 "$limit" "$@" >>"$folder/$log" 2>&1 </dev/null || status=$?
  line=$(grep -E "$proof" "$folder/$log" | tail -n 1 | sed -E 's/^[= ]+//; s/[= ]+$//')
  case $status in
    0) result=${line:+passed: $line} ;;
    124 | 137) result="failed: stopped after $limit s" ;;
    *) result="failed" ;;
  esac
  result=${result:-"failed: $log has no line with $proof"}
  note "$name" "$status" $((SECONDS - start)) "$result"
  if [ "$(stat -c %s "$folder/$log")" -gt 8000000 ]; then # a run that goes wrong can write without end
    tail -c 8000000 "$folder/$log" >"$site/log" && cp "$site/log" "$folder/$log"
  fi
  if [[ $result != passed* ]]; then
    failed=1
    tail -n 20 "$folder/$log"
    return 1
  fi
}

# shellcheck disable=SC2016 # the inner shell expands it
if step build build.log 120 '^the GPU can be used$' bash -c '
  python3 -m pip install --no-build-isolation --no-deps --no-index --target "$0" . \
    -C cmake.define.FUSED_PENALTIES_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native &&
    python3 -c "
import sys, fused_penalties as fp
print(fp.__file__, fp.build_info())
available = fp.cuda.is_available()
assert fp.__file__.startswith(sys.argv[1]), \"another build is imported\"
print(\"the GPU can be used\" if available else available)" "$0"' "$site"; then
  step tests tests.log 120 '[0-9]+ passed' \
    python3 -m pytest -m cuda -p no:cacheprovider --maxfail=20 --junitxml="$folder/tests.xml"
  for tool in memcheck racecheck; do
    case $tool in
      memcheck) proof="ERROR SUMMARY: 0 errors" ;;
      racecheck) proof="RACECHECK SUMMARY: 0 hazards" ;;
    esac
    if command -v compute-sanitizer >/dev/null; then
      # What the libraries ask the driver in vain is no error of ours; our own calls raise exceptions.
      step $tool sanitizer.log 60 "$proof" compute-sanitizer --tool $tool --target-processes all \
        --report-api-errors no --print-limit 100 --error-exitcode 9 python3 bench/gpu_short.py
    else
      note $tool "" 0 "not run: compute-sanitizer is neither on PATH nor in CUDA_HOME"
    fi
  done
  step bench bench.log 195 'Must reach' \
    python3 bench/gpu.py --json "$folder/gpu.json" --picture "$folder/gpu.png"
else
  for name in tests memcheck racecheck bench; do
    note $name "" 0 "not run: the build failed"
  done
fi

[ -f "$folder/bench.log" ] && sed -n '/^Must reach/,$p' "$folder/bench.log"
printf '\n%-10s %7s  %s\n' step seconds result
for ((at = 0; at < ${#steps[@]}; at += 4)); do
  printf '%-10s %7s  %s\n' "${steps[at]}" "${steps[at + 2]}" "${steps[at + 3]}"
done
echo "results: $folder"
exit $failed
