#!/usr/bin/env bash
# The whole training on one machine with two GPUs: training/everything.sh OUT
# Seconds by stage come from the environment; 0 leaves a stage out, and what it would have made is taken from
# t2v_kit/pocket. CONTINUE=1 goes on from the weights there instead of starting afresh. Logs lie in OUT/log.
set -eu
cd "$(dirname "$0")/.."
out=${1:?usage: training/everything.sh OUT}
: "${LLM:=95}" "${CLIP:=80}" "${VAE:=1200}" "${TRANSFORMER:=1500}" "${ONWARD:=2000}" "${GUIDANCE:=440}" "${UPSCALER:=400}"
: "${PROBE:=400}" "${CONTINUE:=0}"
bundle=$out/bundle log=$out/log
mkdir -p "$bundle" "$log"
[ "$LLM" = 0 ] || python3 -m training.tokenizers # as it was before training.words
cp -r t2v_kit/pocket/. "$bundle/"
began=$SECONDS

stage() { # stage NAME SECONDS GPUS MODULE OPTION...
    local name=$1 seconds=$2 gpus=$3 count; shift 3
    [ "$seconds" -gt 0 ] || return 0
    count=$(tr ',' '\n' <<<"$gpus" | wc -l)
    CUDA_VISIBLE_DEVICES=$gpus python3 -m torch.distributed.run --standalone --nproc-per-node "$count" \
        -m "$@" --seconds "$seconds" >"$log/$name" 2>&1 && ended=well || ended=badly
    echo "$((SECONDS - began)) s: $name ended $ended" | tee -a "$log/times"
    [ $ended = well ]
}
from() { [ "$CONTINUE" = 0 ] || echo "--resume $bundle/$1"; }
ship() { cp -r "$1" "$bundle/"; }

# The encoders first, each alone on its GPU: two trainings on one slow each other more than their sum.
stage llm "$LLM" 0 training.llm --out "$out" & first=$!
stage clip "$CLIP" 1 training.clip --out "$out"
wait $first
[ "$LLM" = 0 ] || { ship "$out/text_encoder" && python3 -m training.words --out "$bundle"; }
[ "$CLIP" = 0 ] || ship "$out/text_encoder_2"
# shellcheck disable=SC2046
stage vae "$VAE" 0,1 training.vae --out "$out" $(from vae)
[ "$VAE" = 0 ] || ship "$out/vae"
# shellcheck disable=SC2046
stage transformer "$TRANSFORMER" 0,1 training.transformer --bundle "$bundle" --out "$out" $(from transformer)
[ "$TRANSFORMER" = 0 ] || ship "$out/transformer"
# What does not disturb the transformer, on one GPU; guidance on the other.
stage guidance "$GUIDANCE" 1 training.guidance --bundle "$bundle" --resume "$bundle/transformer" --out "$out/student" & second=$!
stage onward "$ONWARD" 0 training.vae --stay .005 --resume "$bundle/vae" --out "$out/onward"
[ "$ONWARD" = 0 ] || ship "$out/onward/vae"
stage probe "$PROBE" 0 training.probe --vae "$bundle/vae" --out "$out/probe"
stage upscaler "$UPSCALER" 0 training.upscaler --vae "$bundle" --out "$out/upscaler"
wait $second
echo "To ship: copy from $bundle, $out/student and $out/upscaler into t2v_kit/pocket, $out/probe into training/weights."
