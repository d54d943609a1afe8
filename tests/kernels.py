"""The notebooks' kernels, under pytest, are forks of one process that has imported the libraries.

Importing them takes longer than many a notebook computes, and there are over thirty notebooks. `t2v_kit` itself is
imported by each kernel, as are what it shows pictures and progress bars with. The Colab editions, the browser and
`regenerate.py` have their kernels in the ordinary way.
"""

import functools
import multiprocessing
import os
import subprocess
import sys
from unittest import mock

import torch

LIBRARIES = [
    "t2v_kit._imports",  # first: it makes torchvision importable
    "diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
    "peft",
    "skimage.metrics",
    "ipykernel.kernelapp",
    "ipywidgets",
]
ASKS_WHERE_IT_IS = ("tqdm", "matplotlib")  # when they are imported, whether that is a notebook
# A process that has seen a GPU cannot be forked, and Windows cannot fork.
CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()


class Fork:
    """A forked kernel, with what Jupyter uses of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None, **_) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(LIBRARIES)
        own, its = server.Pipe(duplex=False)
        arguments = (command[2:], cwd or os.getcwd(), {**env, "JPY_PARENT_PID": str(os.getpid())}, paths(), its)
        self.process = server.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        its.close()
        own.recv()  # it has a process group of its own: Jupyter kills the group
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def paths() -> list[str]:
    """Where a kernel looks for modules: not where pytest does."""
    command = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def serve(argv: list[str], folder: str, environment: dict[str, str], path: list[str], ready) -> None:
    """Become the kernel that `python -m` and `argv` would start."""
    os.setsid()
    ready.send("a group of its own")
    ready.close()
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        for stream in range(3):
            os.dup2(nowhere.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[:] = argv, path
    for name in [name for name in sys.modules if name.split(".")[0] in ASKS_WHERE_IT_IS]:
        del sys.modules[name]
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


def forking(start):
    """nbval's `start_new_kernel`, by a fork where that can be."""

    @functools.wraps(start)
    def start_new_kernel(*args, **kwargs):
        with mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", Fork):
            return start(*args, **kwargs)

    return start_new_kernel if CAN_FORK else start
