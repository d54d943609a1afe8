"""Python processes that start at once: forks of one process that has imported the libraries.

Importing them takes longer than most of what the tests compute in processes of their own. `t2v_kit` itself is imported
by each process, as is what asks at its import whether it is in a notebook. What is about the start itself (commands,
imports, launchers, the Colab editions, the browser) starts Python in the ordinary way.
"""

import functools
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing import spawn
from multiprocessing.reduction import DupFd
from pathlib import Path
from unittest import mock

import torch

LIBRARIES = [
    "t2v_kit._imports",  # first: it makes torchvision importable
    "diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
    "peft",
    "spandrel",
    "skimage.metrics",
    "ipykernel.kernelapp",
    "ipywidgets",
]
ASKS_WHERE_IT_IS = ("tqdm", "matplotlib")
# A process that has seen a GPU cannot be forked, and Windows cannot fork.
CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()


class Fork:
    """What `subprocess.Popen([sys.executable, *argv])` would start; `argv` begins with -m, -c or a script."""

    stdin = stdout = stderr = None

    def __init__(
        self, argv: list, env: dict[str, str], cwd: str | Path | None = None, stdout=None, stderr=None
    ) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(LIBRARIES)
        own, its = server.Pipe(duplex=False)
        where = str(cwd or os.getcwd()), env, paths(env.get("PYTHONPATH", ""))
        arguments = (list(map(str, argv)), *where, its, Words(stdout), Words(stderr))
        self.process = server.Process(target=become, args=arguments, daemon=True)
        told = functools.partial(without_main, spawn.get_preparation_data)
        with mock.patch.object(spawn, "get_preparation_data", told):
            self.process.start()
        its.close()
        own.recv()  # it has a process group of its own, which may be killed
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


class Words:
    """What takes a process's stdout or stderr: an open file, or None for nothing. It is handed on by a pickle."""

    def __init__(self, file) -> None:
        self.file = file

    def __reduce__(self):
        return Words, (self.file and DupFd(self.file.fileno()),)

    def open(self) -> int:
        return self.file.detach() if self.file else os.open(os.devnull, os.O_WRONLY)


def without_main(preparation, name: str) -> dict:
    """What multiprocessing tells a new process, but for the script to import: that is pytest, which it does not use."""
    return {key: value for key, value in preparation(name).items() if not key.startswith("init_main")}


@functools.cache
def paths(own: str) -> list[str]:
    """Where a new process looks for modules: not where pytest does."""
    command = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    environment = os.environ | {"PYTHONPATH": own}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def become(
    argv: list[str], folder: str, environment: dict[str, str], path: list[str], ready, out: Words, err: Words
) -> None:
    """Go on as `python` with these arguments."""
    os.setsid()
    ready.send("a group of its own")
    ready.close()
    for stream, target in enumerate((os.open(os.devnull, os.O_RDONLY), out.open(), err.open())):
        os.dup2(target, stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.split(".")[0] in ASKS_WHERE_IT_IS]:
        del sys.modules[name]
    kind, rest = argv[0], argv[1:]
    sys.path[:] = path
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = argv
        runpy.run_path(kind, run_name="__main__")


def python(argv: list, env: dict[str, str], stdout=None, stderr=None) -> Fork | subprocess.Popen:
    """Start Python with these arguments, by a fork where that can be."""
    if CAN_FORK:
        return Fork(argv, os.environ | env, stdout=stdout, stderr=stderr)
    nothing = subprocess.DEVNULL
    out, err = stdout or nothing, stderr or nothing
    return subprocess.Popen([sys.executable, *argv], stdin=nothing, stdout=out, stderr=err, env=os.environ | env)


def finished(argv: list, env: dict[str, str]) -> subprocess.CompletedProcess:
    """What came of `python` with these arguments, as `subprocess.run` tells it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        status = python(argv, env, out, err).wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, status, out.read(), err.read())


def together(size: int, argv: list, env: dict[str, str], timeout: float = 300) -> None:
    """As torchrun: so many processes that find each other; all of them must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meet |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with tempfile.TemporaryFile("w+") as words:
        ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size))
        processes = [python(argv, env | meet | rank, stderr=words) for rank in ranks]
        try:
            ends = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        words.seek(0)
        assert ends == [0] * size, words.read()[-2000:]


def forked_kernels(start):
    """nbval's `start_new_kernel`, by a fork where that can be."""

    def fork(command, env, cwd=None, **_) -> Fork:
        return Fork(command[1:], {**env, "JPY_PARENT_PID": str(os.getpid())}, cwd)

    @functools.wraps(start)
    def start_new_kernel(*args, **kwargs):
        with mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", fork):
            return start(*args, **kwargs)

    return start_new_kernel if CAN_FORK else start
