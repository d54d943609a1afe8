#!/usr/bin/env bash
# The whole training on one machine with four GPUs (or two), in three parts of at most ten minutes each:
#   training/everything.sh OUT encoders      the language model and CLIP on the first GPU, the VAE on the others
#   training/everything.sh OUT transformer   on all
#   training/everything.sh OUT rest          guidance; beside it the VAE's decoder, upscaler and judge; then the evaluation
# Seconds by stage come from the environment; 0 leaves a stage out, and what it would have made is taken from
# OUT/bundle, which begins as a copy of t2v_kit/pocket; so does what a stage made that failed. FROM=OUT/bundle goes on
# from the weights there instead of starting afresh. Logs lie in OUT/log.
set -eu
cd "$(dirname "$0")/.."
out=${1:?usage: training/everything.sh OUT encoders|transformer|rest}
: "${LLM:=100}" "${CLIP:=80}" "${VAE:=520}" "${TRANSFORMER:=560}" "${GUIDANCE:=330}" "${UPSCALER:=280}" "${PROBE:=230}"
: "${DECODER:=0}" "${EVALUATE:=90}" "${FROM:=}" "${WORKERS:=12}" "${VAE_OPTIONS:=}" "${TRANSFORMER_OPTIONS:=}"
: "${GUIDANCE_OPTIONS:=}" "${DECODER_OPTIONS:=}" "${UPSCALER_OPTIONS:=}" "${PROBE_OPTIONS:=}" "${EVALUATE_OPTIONS:=}"
bundle=$out/bundle log=$out/log
mkdir -p "$bundle" "$log"
[ -e "$bundle/model_index.json" ] || cp -r t2v_kit/pocket/. "$bundle/"
began=$SECONDS count=$(nvidia-smi -L | wc -l)
gpus() { seq -s , "$1" "$2"; } # gpus FIRST LAST

stage() { # stage NAME SECONDS GPUS MODULE OPTION...: false where it made nothing
    local name=$1 seconds=$2 gpus=$3 each; shift 3
    [ "$seconds" -gt 0 ] || return 1
    each=$(tr ',' '\n' <<<"$gpus" | wc -l)
    CUDA_VISIBLE_DEVICES=$gpus python3 -m torch.distributed.run --standalone --nproc-per-node "$each" \
        -m "$@" --seconds "$seconds" >"$log/$name" 2>&1 && ended=well || ended=badly
    echo "$((SECONDS - began)) s: $name ended $ended" | tee -a "$log/times"
    [ $ended = well ]
}
from() { [ -z "$FROM" ] || echo "--resume $FROM/$1"; }
ship() { cp -r "$1" "$bundle/"; }
measure() { # measure GPU WHAT: its numbers go to OUT/evaluation-GPU.json, and so does what the bundle has already
    rm -rf "$out/measured-$1" && cp -r "$bundle" "$out/measured-$1"
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$1 timeout $((EVALUATE + 60)) python3 -m training.evaluate --model "$out/measured-$1" --what "$2" \
        --probes "$probes" --teacher "$teacher" --seconds "$EVALUATE" --out "$out" $EVALUATE_OPTIONS >"$log/evaluate-$1" 2>&1 \
        && ended=well || ended=badly
    echo "$((SECONDS - began)) s: $2 measured $ended" | tee -a "$log/times"
    cp "$out/measured-$1/evaluation.json" "$out/evaluation-$1.json"
}

# Two trainings on one GPU slow each other more than their sum, so each has its own.
# shellcheck disable=SC2046,SC2086
case ${2:?} in
encoders)
    { stage vae "$VAE" "$(gpus 1 $((count - 1)))" training.vae --out "$out" $(from vae) $VAE_OPTIONS && ship "$out/vae"; } &
    stage llm "$LLM" 0 training.llm --out "$out" && ship "$out/text_encoder"
    stage clip "$CLIP" 0 training.clip --out "$out" && ship "$out/text_encoder_2"
    wait
    ;;
transformer)
    stage transformer "$TRANSFORMER" "$(gpus 0 $((count - 1)))" training.transformer --bundle "$bundle" --workers "$WORKERS" --out "$out" \
        $(from transformer) $TRANSFORMER_OPTIONS && ship "$out/transformer"
    ;;
rest)
    teacher=$out/transformer probes=training/weights
    [ -d "$teacher" ] || cp -r "$bundle/transformer" "$teacher"
    { stage guidance "$GUIDANCE" "$(gpus 0 $((count / 2 - 1)))" training.guidance --bundle "$bundle" --resume "$teacher" \
        --workers "$WORKERS" --out "$out/student" $GUIDANCE_OPTIONS && cp -r "$out/student/transformer" "$out/guided"; } &
    { stage decoder "$DECODER" $((count / 2)) training.vae --decoder --resume "$bundle/vae" --out "$out" $DECODER_OPTIONS \
        && ship "$out/vae"
      stage upscaler "$UPSCALER" $((count / 2)) training.upscaler --vae "$bundle" --out "$out/upscaler" $UPSCALER_OPTIONS; } &
    stage probe "$PROBE" $((count - 1)) training.probe --vae "$bundle/vae" --out "$out/probe" $PROBE_OPTIONS && probes=$out/probe
    wait
    [ ! -d "$out/guided" ] || cp -r "$out/guided/." "$bundle/transformer/"
    if [ "$EVALUATE" -gt 0 ]; then
        measure 0 adherence,text &
        measure 1 by_hand,typing,underspecified,guidance,vae &
        wait
    fi
    ;;
esac
echo "To ship: python -m training.pocket --out $bundle, the weights in $out/upscaler to t2v_kit/pocket/upscaler,"
echo "those in $out/probe to training/weights."
