"""A process to be killed: imports and loads once, then forks a child for every order that comes in, one JSON a line.

An order is {"folder", "settings", "verb": "generate" or "resume", "model", and what to do to the child}:
    "kill": n      SIGKILL at its n-th write, rename or removal (before, half-way or after; 0: never)
    "full": n      its n-th write or rename meets a full disk
    "until": name  leave before this stage ("decode": the latents are what counts)
Answers are one JSON a line: {"pid"} at once; and after another line came in, {"status", "events", "error"} of the end.
"""

import contextlib
import errno
import functools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

import t2v_kit  # noqa: F401  (before diffusers)
from t2v_kit.errors import UserError
from t2v_kit.model.loading import load
from t2v_kit.run import folder as folder_module
from t2v_kit.run import generating as run_module
from t2v_kit.stages import prompt as prompt_module


class Harm:
    """Counts what is written and renamed, and strikes at one of them."""

    def __init__(self, kill: int, full: int) -> None:
        self.kill, self.full, self.events, self.calls = kill, full, [], 0

    def event(self, name: str) -> None:
        self.events.append(name)
        if len(self.events) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def writer(self, real, place):
        """`real`, which writes the file that is its argument number `place`."""

        @functools.wraps(real)
        def harmed(*args, **kwargs):
            name = Path(args[place]).name
            self.event(f"before writing {name}")
            self.calls += 1
            if self.calls == self.full:
                Path(args[place]).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            result = real(*args, **kwargs)
            if len(self.events) + 1 == self.kill:
                os.truncate(args[place], os.path.getsize(args[place]) // 2)
            self.event(f"half-way through {name}")
            self.event(f"after writing {name}")
            return result

        return harmed

    def renamer(self, real):
        @functools.wraps(real)
        def harmed(*args, **kwargs):
            name = Path(args[-1]).name
            self.event(f"before renaming to {name}")
            self.calls += 1
            if self.calls == self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            result = real(*args, **kwargs)
            self.event(f"after renaming to {name}")
            return result

        return harmed

    def remover(self, real):
        @functools.wraps(real)
        def harmed(path, *args, **kwargs):
            if not path.exists():
                return real(path, *args, **kwargs)
            self.event(f"before removing {path.name}")
            real(path, *args, **kwargs)
            self.event(f"after removing {path.name}")

        return harmed


def leave(*_) -> None:
    raise SystemExit


def obey(order: dict, models: dict, pipe: int) -> int:
    """In the child: harm it as ordered, run, and report; the exit status."""
    harm = Harm(order.get("kill", 0), order.get("full", 0))
    folder_module.save_file = harm.writer(folder_module.save_file, 1)
    prompt_module.save_file = harm.writer(prompt_module.save_file, 1)
    run_module.save_video = harm.writer(run_module.save_video, 0)
    Path.write_text = harm.writer(Path.write_text, 0)
    Path.unlink = harm.remover(Path.unlink)
    os.replace = harm.renamer(os.replace)
    if "until" in order:
        setattr(run_module, order["until"], leave)
    keywords = {"model": models[order["model"]], "progress": False, "checkpoint_every": order.get("every", 2)}
    error, status = "", 0
    try:
        with contextlib.suppress(SystemExit):
            if order["verb"] == "resume":
                run_module.resume(order["folder"], **keywords)
            else:
                run_module.generate(**order["settings"], out=order["folder"], upscale="none", **keywords)
    except UserError as mistake:
        error, status = str(mistake), 2
    except Exception:
        error, status = traceback.format_exc(), 1
    os.write(pipe, json.dumps({"events": harm.events, "error": error}).encode())
    return status


def main() -> None:
    torch.set_num_threads(1)  # no threads of torch yet: they would not be there in a child
    models = {dtype: load(sys.argv[1], device="cpu", dtype=dtype) for dtype in sys.argv[2:]}
    for each in models.values():
        each.weights_hash  # noqa: B018  (read once, here)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        ends = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(obey(order, models, ends[1]))
        os.close(ends[1])
        print(json.dumps({"pid": pid}), flush=True)
        with os.fdopen(ends[0]) as reader:
            told = reader.read()
        sys.stdin.readline()  # until then its number stays its own, and a kill that comes late hits nobody else
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, **json.loads(told or "{}")}), flush=True)


if __name__ == "__main__":
    main()
