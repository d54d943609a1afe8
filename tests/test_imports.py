"""The import remedy, each case in a fresh Python, because an import happens only once in a process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The module without the rest of the package, which imports diffusers and with it the true torchvision.
ALONE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("remedy", {str(ROOT / "t2v_kit" / "_imports.py")!r})
remedy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(remedy)
"""
NMS_IS_REAL_OR_RAISES = """
import torch, torchvision
boxes, scores = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8])
try:
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]
except RuntimeError as error:
    assert "custom C++ ops" in str(error), error
"""


def python(code: str, *path: Path) -> str:
    """Run code in a fresh interpreter that finds `path` and this repository first; its stdout."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_torchvision(folder: Path, init: str) -> Path:
    """A package named torchvision with this `__init__`, and the function that basicsr misses."""
    package = folder / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "__init__.py").write_text(init)
    (package / "transforms" / "__init__.py").write_text("")
    (package / "transforms" / "functional.py").write_text("rgb_to_grayscale = 'the new place'")
    return folder


def test_the_module_itself_imports_nothing_heavy():
    """`--help` and a mistyped option answer at once: torch is imported only when torchvision is."""
    names = ("torch", "torchvision", "numpy")
    out = python(ALONE + f"import sys; print([name for name in {names} if name in sys.modules])")
    assert out.strip() == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp's own variable")
@pytest.mark.parametrize(
    "before, count",
    [("", "1000"), ("OMP_WAIT_POLICY=ACTIVE", "None"), ("GOMP_SPINCOUNT=7", "7")],
)
def test_threads_wait_briefly_unless_told_otherwise(before, count):
    """It is there before PyTorch starts its threads, and what the user has set stays."""
    name, _, value = before.partition("=")
    told = f"os.environ[{name!r}] = {value!r}" if before else ""
    out = python(
        f"import os\nos.environ.pop('GOMP_SPINCOUNT', None)\n{told}\nimport t2v_kit, sys\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    assert out.split() == [count, "False"]


def test_diffusers_and_transformers_import_after_t2v_kit():
    """The classes that need torchvision import, and an operator that is only declared never answers falsely."""
    python(
        "import t2v_kit\nfrom diffusers import HunyuanVideoPipeline\nfrom transformers import LlamaModel\n"
        + NMS_IS_REAL_OR_RAISES
    )


@pytest.mark.skipif(importlib.util.find_spec("realesrgan") is None, reason="realesrgan needs Python below 3.13")
def test_realesrgan_imports_and_converts_to_grey():
    """basicsr imports beside today's torchvision, and the function it gets is the real one."""
    python(
        "import t2v_kit, torch\nfrom realesrgan import RealESRGANer\n"
        "from basicsr.data.degradations import rgb_to_grayscale as to_grey\n"
        "red = torch.tensor([1., 0, 0]).reshape(3, 1, 1)\n"
        "assert abs(to_grey(red).item() - 0.2989) < 1e-6\n"
    )


@pytest.mark.parametrize("hidden", [("realesrgan", "basicsr"), ("torchvision", "realesrgan", "basicsr")])
def test_optional_packages_may_be_missing(hidden):
    """Without realesrgan (Python 3.13) and without torchvision the pipeline imports all the same."""
    python(
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "import t2v_kit\nfrom diffusers import HunyuanVideoPipeline\n"
    )


def test_it_works_after_a_failed_import_of_torchvision():
    """Somebody tried torchvision before us, in a `try` or a notebook cell: the next import goes through."""
    python("try:\n    import torchvision\nexcept RuntimeError:\n    pass\n" + ALONE + NMS_IS_REAL_OR_RAISES)


def test_importing_it_twice_does_no_harm():
    """`importlib.reload`, as autoreload in a notebook does, leaves torchvision importable."""
    again = "spec.loader.exec_module(remedy)\n"
    python(ALONE + again + NMS_IS_REAL_OR_RAISES + again + "import torchvision.transforms.functional_tensor")


def test_a_healthy_torchvision_is_left_alone(tmp_path):
    """Where the plain import works (CUDA torch) it runs once and no operator is declared."""
    out = python(
        ALONE + "import torchvision\nprint(torchvision.runs, remedy._kept)",
        fake_torchvision(tmp_path, "runs = vars().get('runs', 0) + 1"),
    )
    assert out.strip() == "1 []"


def test_the_init_runs_again_with_the_operators_declared(tmp_path):
    """What fails for the missing operator runs a second time, from clean submodules, with the operator there."""
    init = "import torch, torchvision.transforms as half\nruns = vars().get('runs', []) + [half]\n" + (
        "if not torch._C._dispatch_has_kernel('torchvision::nms') and len(runs) < 2:\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "torch.ops.torchvision.nms, torch.ops.torchvision.qnms\n"
    )
    out = python(
        ALONE + "import torchvision\nfirst, second = torchvision.runs\nprint(first is second)",
        fake_torchvision(tmp_path, init),
    )
    assert out.strip() == "False"


@pytest.mark.parametrize("error", ["RuntimeError('different CUDA major versions')", "ImportError('no PIL')"])
def test_another_illness_is_not_hidden(tmp_path, error):
    """Only the missing operators are remedied: any other failure reaches the user as it is."""
    out = python(
        ALONE + "try:\n    import torchvision\nexcept Exception as error:\n    print(repr(error))",
        fake_torchvision(tmp_path, f"raise {error}"),
    )
    assert out.strip() == error


def test_an_older_torchvision_keeps_its_own_module(tmp_path):
    """Before 0.17 torchvision had `functional_tensor` itself: ours only stands in where there is none."""
    folder = fake_torchvision(tmp_path, "")
    code = ALONE + "from torchvision.transforms.functional_tensor import rgb_to_grayscale as f\n"
    assert python(code + "print(f)", folder).strip() == "the new place"
    (folder / "torchvision/transforms/functional_tensor.py").write_text("rgb_to_grayscale = 'its own'")
    assert python(code + "print(f)", folder).strip() == "its own"
