#!/usr/bin/env bash
# Everything that needs a GPU, in slices of under nine minutes each.
#
#   bash benchmarks/on_gpu.sh OUT [SLICE ...]
#
# A slice writes OUT/*.json, and what it prints goes to OUT/log.txt too. Without names all slices are
# run in turn; what is in OUT already is not measured again, so that a broken off call can be
# repeated. The slices:
#   checks     boxes and AP50 in bf16, drift of scores with the batch size, DataParallel logic
#   batch8     images/s and peak memory of ResNet50-FPN at 512x512 against torchvision's, in training,
#   batch16    evaluation and scoring; torchvision once in fp32 and once in bf16
#   batch32    (any other number goes too)
#   switches   low precision and compiling on and off at batch 16
#   layout     channels last and the fused optimiser on and off at batch 16
#   exact      deterministic operations on and off at batch 16
#   loading    training with its loader at batch 16; loader, COCO and FROC evaluation by themselves
#
# SMALL=1 runs them with tiny sizes on the CPU. DEVICE (cuda), WORKERS (12, loader processes),
# SECONDS_PER_PART (260, two parts a slice at most) and PYTHON (python) can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: on_gpu.sh OUT [SLICE ...]}
shift
python=${PYTHON:-python}
slices=("$@")
if [ ${#slices[@]} -eq 0 ]; then
  slices=(checks batch8 batch16 batch32 switches layout exact loading)
  if [ -n "${SMALL:-}" ]; then slices=(checks batch2 switches layout exact loading); fi
fi
for slice in "${slices[@]}"; do
  if [[ ! $slice =~ ^(checks|batch[1-9][0-9]*|switches|layout|exact|loading)$ ]]; then
    echo "no slice '$slice': there are checks, batch8, batch16, batch32, switches, layout, exact," \
      "loading" >&2
    exit 2
  fi
done
mkdir -p "$out"
if [ -n "${SMALL:-}" ]; then
  common=(--small --device "${DEVICE:-cpu}")
  model=("${common[@]}" --norm frozen)
  checked=("${common[@]}" --patients 3)
  batches=() pairs=() bare=(fp32)
  tests=(-k dealt)
else
  common=(--device "${DEVICE:-cuda}" --workers "${WORKERS:-12}")
  model=("${common[@]}" --backbone resnet50 --norm frozen --full --image-size 512)
  checked=("${common[@]}" --image-size 512 --batch-size 16 --patients 16 --train-steps 100)
  batches=(--batch-size 16) pairs=(--pairs 8) bare=(fp32 bf16)
  tests=()
fi

part() { # NAME WORD...: one benchmark, unless its file is there
  local name=$1
  shift
  if [ -f "$out/$name.json" ]; then
    echo "$name: there already"
    return
  fi
  echo "== $name: $*" | tee -a "$out/log.txt"
  timeout "${SECONDS_PER_PART:-260}" \
    "$python" -m benchmarks "$@" --out "$out/$name.json" 2>&1 | tee -a "$out/log.txt"
}

model+=(--set trainer.precision=bf16)
# Compiling is not for trials: there it is what is switched on.
if [ -z "${SMALL:-}" ]; then model+=(--set trainer.compile=true); fi

throughput() { # BATCH
  local precision
  for precision in "${bare[@]}"; do
    part "batch$1_bare_$precision" "${model[@]}" --batch-size "$1" "${pairs[@]}" --in-memory \
      --only training,evaluation,scoring --bare-precision "$precision"
  done
}

checks() {
  part checks "${checked[@]}" --only precision,drift
  # Half a point of AP50 is one box of 200: it takes more images, and smaller ones are enough.
  if [ -z "${SMALL:-}" ]; then
    part checks_ap50 "${common[@]}" --image-size 256 --batch-size 16 --patients 160 \
      --train-steps 300 --only precision
  fi
  echo "== tests/test_parallel.py" | tee -a "$out/log.txt"
  "$python" -m pytest -q tests/test_parallel.py "${tests[@]}" 2>&1 | tee -a "$out/log.txt"
}

switch() { # KEY=VALUE: ours against ours with it
  part "switch_${1%%=*}" "${model[@]}" "${batches[@]}" "${pairs[@]}" --in-memory \
    --only switches --switch "$1"
}

switches() {
  switch trainer.precision=fp32
  switch "trainer.compile=$([ -n "${SMALL:-}" ] && echo true || echo false)"
}

layout() {
  switch trainer.channels_last=false
  switch optimizer.args.fused=false
}

exact() {
  switch deterministic=true
}

loading() {
  part loading "${model[@]}" "${batches[@]}" "${pairs[@]}" --only training,loader,coco,froc
}

for slice in "${slices[@]}"; do
  case $slice in
    batch*) throughput "${slice#batch}" ;;
    *) "$slice" ;;
  esac
done
