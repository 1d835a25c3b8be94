#!/usr/bin/env bash
# The shipped studies on a machine with GPUs, in slices: call it again until it says that all is done.
#
#   bash benchmarks/study_on_gpu.sh OUT [phantom|bccd] [more words for the study command]
#
# SECONDS_PER_SLICE (500) ends a slice: runs save and stop, and the next slice goes on with them.
# JOBS (8) runs share a GPU. The small files of finished runs are kept under OUT and taken from
# there again, so that a fresh machine does not repeat them. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: study_on_gpu.sh OUT [phantom|bccd] [more words]}
which=${2:-phantom}
shift $(($# > 1 ? 2 : 1))
config=configs/study_$which.json
folder=exp_results/study_$which
mkdir -p "$out" "$folder"
if [ -d "$out/study_$which" ]; then
  cp -Rn "$out/study_$which/." "$folder/"
fi
code=0
timeout --signal=TERM --kill-after=60 "${SECONDS_PER_SLICE:-500}" \
  "${PYTHON:-python}" -m med_sslal study -c "$config" --jobs "${JOBS:-8}" "$@" || code=$?
# Finished runs only, without weights, records and event files: some 100 kB each.
for summary in "$folder"/*/s*/summary.json; do
  if [ -f "$summary" ] && grep -q '"finished": true' "$summary"; then
    run=$(dirname "$summary")
    kept=$out/study_$which/${run#"$folder"/}
    mkdir -p "$kept"
    tar -C "$run" --exclude='*.pth*' --exclude=record --exclude=tensorboard -cf - . | tar -C "$kept" -xf -
  fi
done
find "$folder" -maxdepth 1 -type f -exec cp {} "$out/study_$which/" \;
# 124 and 143: the slice is over.
if [ "$code" -eq 124 ] || [ "$code" -eq 143 ]; then
  echo "slice over: call again to go on"
  exit 0
fi
exit "$code"
