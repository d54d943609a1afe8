"""Notebooks under the tests: the cells that look for T2V_SHORT make less of what takes long."""

import os

os.environ.setdefault("T2V_SHORT", "1")  # their kernels inherit it
