"""What other packages need before they are imported: to raise no error, make no noise, and leave others their share.

Three accidents of packaging, all met before a single line of ours would run:

1. torchvision from PyPI is a CUDA build. Beside a CPU-only torch its compiled library cannot be loaded, and
   `import torchvision` stops with "operator torchvision::nms does not exist". transformers and diffusers import
   torchvision whenever it is installed, so they stop too. Declaring the two operators that its Python code
   annotates (declaring, not implementing: calling them still raises) lets the import go through.
2. basicsr, under the realesrgan package, imports `torchvision.transforms.functional_tensor`, which torchvision
   removed in 0.17. The one function it needs lives on in `torchvision.transforms.functional`.

3. bitsandbytes, which diffusers imports, logs 'Failed to load CPU gemm_4bit_forward ...' on every machine without
   the optional package `kernels`. It then uses its own code, so there is nothing a user should do.

And a habit of PyTorch's threads, which on Linux are those of libgomp. They wait for work by spinning: 300,000 times
before they sleep, but 1,000 times where the program has more threads than the machine has cores. libgomp knows nothing
of other programs. Beside these its threads spend their turns waiting, and pocket's steps take several times as long
(`benchmarks.demo`). With 1,000 they don't, and on a quiet machine they are about as fast. Who has set OMP_WAIT_POLICY
or GOMP_SPINCOUNT keeps it, and threads that PyTorch has begun already stay as they are.

Importing this module imports nothing but `logging` and `os`: it leaves two import hooks, which act when, and only when,
torchvision fails that way or that module is asked for, a filter on one logger, and that variable. `import t2v_kit` does
it first, so it comes before diffusers.
"""

import logging
import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

OPERATORS = ("nms", "qnms")  # all that torchvision 0.28 annotates without asking whether its library was loaded
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # torchvision/csrc/ops/nms.cpp
FUNCTIONAL_TENSOR = "torchvision.transforms.functional_tensor"

_kept = []  # torch.library forgets the declarations when their Library object goes


class _TorchvisionLoader(SourceFileLoader):
    """Runs torchvision's `__init__`; if the missing operators stop it, declares them and runs it again."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise  # another illness, such as torch and torchvision of different releases: let it speak
            _declare_operators()
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # the halves left by the failed import
            super().exec_module(module)


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator + SCHEMA)
    _kept.append(library)


class _TorchvisionFinder:
    """First in `sys.meta_path`: finds torchvision where it is, and has it loaded with care."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "torchvision" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


class _FunctionalTensorFinder(Loader):
    """Last in `sys.meta_path`: asked only where torchvision has no such module of its own."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, cls()) if name == FUNCTIONAL_TENSOR else None

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary empty module will do."""

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms.functional import rgb_to_grayscale

        vars(module)["rgb_to_grayscale"] = rgb_to_grayscale


if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
sys.meta_path.insert(0, _TorchvisionFinder)
sys.meta_path.append(_FunctionalTensorFinder)
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)
