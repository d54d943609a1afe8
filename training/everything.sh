#!/usr/bin/env bash
# The whole training on one machine with four GPUs (or two), in three parts of at most ten minutes each:
#   training/everything.sh OUT encoders      the language model and CLIP on the first GPU, the VAE on the others
#   training/everything.sh OUT transformer   on all
#   training/everything.sh OUT rest          guidance, upscaler and judge, then the evaluation
# Seconds by stage come from the environment; 0 leaves a stage out, and what it would have made is taken from
# OUT/bundle, which begins as a copy of t2v_kit/pocket. FROM=OUT/bundle goes on from the weights there instead of
# starting afresh. Logs lie in OUT/log.
set -eu
cd "$(dirname "$0")/.."
out=${1:?usage: training/everything.sh OUT encoders|transformer|rest}
: "${LLM:=100}" "${CLIP:=80}" "${VAE:=520}" "${TRANSFORMER:=560}" "${GUIDANCE:=330}" "${UPSCALER:=280}" "${PROBE:=230}"
: "${EVALUATE:=90}" "${FROM:=}" "${WORKERS:=12}" "${VAE_OPTIONS:=}" "${TRANSFORMER_OPTIONS:=}" "${PROBE_OPTIONS:=}"
bundle=$out/bundle log=$out/log
mkdir -p "$bundle" "$log"
[ -e "$bundle/model_index.json" ] || cp -r t2v_kit/pocket/. "$bundle/"
began=$SECONDS count=$(nvidia-smi -L | wc -l)
gpus() { seq -s , "$1" "$2"; } # gpus FIRST LAST

stage() { # stage NAME SECONDS GPUS MODULE OPTION...
    local name=$1 seconds=$2 gpus=$3 each; shift 3
    [ "$seconds" -gt 0 ] || return 0
    each=$(tr ',' '\n' <<<"$gpus" | wc -l)
    CUDA_VISIBLE_DEVICES=$gpus python3 -m torch.distributed.run --standalone --nproc-per-node "$each" \
        -m "$@" --seconds "$seconds" >"$log/$name" 2>&1 && ended=well || ended=badly
    echo "$((SECONDS - began)) s: $name ended $ended" | tee -a "$log/times"
    [ $ended = well ]
}
from() { [ -z "$FROM" ] || echo "--resume $FROM/$1"; }
ship() { cp -r "$1" "$bundle/"; }

# Two trainings on one GPU slow each other more than their sum, so each has its own.
# shellcheck disable=SC2046,SC2086
case ${2:?} in
encoders)
    stage vae "$VAE" "$(gpus 1 $((count - 1)))" training.vae --out "$out" $(from vae) $VAE_OPTIONS & vae=$!
    stage llm "$LLM" 0 training.llm --out "$out"
    [ "$LLM" = 0 ] || ship "$out/text_encoder"
    stage clip "$CLIP" 0 training.clip --out "$out"
    [ "$CLIP" = 0 ] || ship "$out/text_encoder_2"
    wait $vae
    [ "$VAE" = 0 ] || ship "$out/vae"
    ;;
transformer)
    stage transformer "$TRANSFORMER" "$(gpus 0 $((count - 1)))" training.transformer --bundle "$bundle" --workers "$WORKERS" --out "$out" \
        $(from transformer) $TRANSFORMER_OPTIONS
    ship "$out/transformer"
    ;;
rest)
    stage guidance "$GUIDANCE" "$(gpus 0 $((count / 2 - 1)))" training.guidance --bundle "$bundle" --resume "$bundle/transformer" \
        --workers "$WORKERS" --out "$out/student" & guidance=$!
    stage upscaler "$UPSCALER" $((count / 2)) training.upscaler --vae "$bundle" --out "$out/upscaler" & upscaler=$!
    stage probe "$PROBE" $((count - 1)) training.probe --vae "$bundle/vae" --out "$out/probe" $PROBE_OPTIONS
    wait $guidance
    [ "$GUIDANCE" = 0 ] || ship "$out/student/transformer"
    wait $upscaler
    [ "$EVALUATE" = 0 ] || CUDA_VISIBLE_DEVICES=0 python3 -m training.evaluate --model "$bundle" --probes "$out/probe" \
        --teacher "$out/transformer" --seconds "$EVALUATE" --out "$out" >"$log/evaluate" 2>&1
    ;;
esac
echo "To ship: python -m training.pocket --out $bundle, the weights in $out/upscaler to t2v_kit/pocket/upscaler,"
echo "those in $out/probe to training/weights."
