#!/usr/bin/env bash
# The shipped studies on a machine with GPUs, in slices: call it again until it says that all is done.
#
#   bash benchmarks/study_on_gpu.sh OUT [phantom|bccd] [more words for the study command]
#
# SECONDS_PER_SLICE (500) ends a slice: runs save and stop, and the next slice goes on with them.
# JOBS (8) runs share a GPU. The small files of finished runs are kept under OUT and taken from
# there again, so that a fresh machine does not repeat them. PYTHON names the interpreter.
set -euo pipefail
usage="usage: study_on_gpu.sh OUT [phantom|bccd] [more words]"
mkdir -p "${1:?$usage}"
out=$(cd "$1" && pwd)
which=${2:-phantom}
shift $(($# > 1 ? 2 : 1))
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=exp_results/study_$which
kept=$out/study_$which
mkdir -p "$kept" "$folder"
cp -Rn "$kept/." "$folder/"
code=0
timeout --signal=TERM --kill-after=60 "${SECONDS_PER_SLICE:-500}" \
  "${PYTHON:-python}" -m med_sslal study -c "configs/study_$which.json" \
  --jobs "${JOBS:-8}" "$@" || code=$?
# Finished runs only, without weights, records and event files: some 100 kB each.
for summary in "$folder"/*/s*/summary.json; do
  if [ -f "$summary" ] && grep -q '"finished": true' "$summary"; then
    run=$(dirname "$summary")
    mkdir -p "$kept/${run#"$folder"/}"
    tar -C "$run" --exclude='*.pth*' --exclude=record --exclude=tensorboard -cf - . |
      tar -C "$kept/${run#"$folder"/}" -xf -
  fi
done
find "$folder" -maxdepth 1 -type f -exec cp {} "$kept/" \;
# 124 and 143: the slice is over.
if [ "$code" -eq 124 ] || [ "$code" -eq 143 ]; then
  echo "slice over: call again to go on"
  exit 0
fi
exit "$code"
