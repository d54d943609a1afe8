"""What tests and notebooks have in common under pytest."""

import nbval.kernel

from tests.kernels import forking

nbval.kernel.start_new_kernel = forking(nbval.kernel.start_new_kernel)
