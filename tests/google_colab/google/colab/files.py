"""Stand-in for google.colab.files: who is asked for files gives those in the folder $UPLOADS, if there is one."""

import os
import shutil
from pathlib import Path


def upload() -> dict[str, bytes]:
    """Copies into the working directory, and names to contents, as Colab's does."""
    given = sorted(Path(os.environ["UPLOADS"]).iterdir()) if "UPLOADS" in os.environ else []
    for path in given:
        shutil.copy(path, path.name)
    return {path.name: path.read_bytes() for path in given}
