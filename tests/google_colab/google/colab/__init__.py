"""Stand-in for Colab's own module, for tests: as much of it as the setup cell asks for."""

from . import drive, files  # noqa: F401
