"""A run in a process of its own, for a test to kill: victim.py MODEL_FOLDER OUT generate|resume SETTINGS."""

import json
import sys

import torch

import t2v_kit
from t2v_kit.model.loading import load

model, out, verb, settings = sys.argv[1:]
torch.set_num_threads(1)
models = load(model, device="cpu")
if verb == "resume":
    t2v_kit.resume(out, models, checkpoint_every=2)
else:
    t2v_kit.generate(**json.loads(settings), model=models, out=out, upscale="none", checkpoint_every=2)
