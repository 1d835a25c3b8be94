#!/usr/bin/env bash
# A shipped study on a machine with GPUs, in slices: call it again until it says nothing of a slice.
#
#   bash benchmarks/study_on_gpu.sh OUT STUDY [more words for the study command]
#
# STUDY is `phantom` for configs/study_phantom.json. SECONDS_PER_SLICE (500) ends a slice: runs save
# and stop, and the next slice goes on with them. JOBS (8) runs share a GPU. What finished runs gave
# is kept in OUT/study_STUDY.json, from which a fresh machine goes on. PYTHON names the interpreter.
set -euo pipefail
usage="usage: study_on_gpu.sh OUT STUDY [more words]"
mkdir -p "${1:?$usage}"
out=$(cd "$1" && pwd)
study=study_${2:?$usage}
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
code=0
timeout --signal=TERM --kill-after=60 "${SECONDS_PER_SLICE:-500}" \
  "${PYTHON:-python}" -m med_sslal study -c "configs/$study.json" \
  --results "$out/$study.json" --jobs "${JOBS:-8}" "$@" || code=$?
# 124 and 143: the slice is over.
if [ "$code" -eq 124 ] || [ "$code" -eq 143 ]; then
  echo "slice over: call again to go on"
  exit 0
fi
exit "$code"
