"""The package's version, in a module of its own that pyproject.toml and every record read."""

__version__ = "0.2.0"
