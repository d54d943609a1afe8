"""Stand-in for google.colab.drive: an empty Drive."""

from pathlib import Path


def mount(mountpoint: str) -> None:
    Path(mountpoint, "MyDrive").mkdir(parents=True)
