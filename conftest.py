"""What tests and notebooks have in common under pytest."""

import nbval.kernel
import pytest

from tests.forks import forked_kernels

# They take longest, most of it in few tests; xdist hands files out in the order of the tests.
LONGEST = (
    *("tests/test_browser.py", "tests/test_colab.py", "tests/test_benchmarks.py", "tests/test_resume.py"),
    *("tests/test_parallel.py", "tests/test_files.py", "tests/test_docs.py", "tests/test_sweep.py"),
    *("tests/test_realesrgan.py", "tests/test_playground.py", "tests/test_cli.py", "tests/test_denoise.py"),
    *("tests/test_imports.py", "tests/test_packages.py", "tests/test_train.py", "tests/test_upscale.py", "notebooks/"),
)

nbval.kernel.start_new_kernel = forked_kernels(nbval.kernel.start_new_kernel)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first: a worker that begins one when the other is done would work alone."""

    def place(item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)
