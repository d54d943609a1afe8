"""How much `make demo` installs: the bytes of every file of requirements.txt's packages and of all that they need.

    python -m benchmarks.install --out benchmarks/results/install.json

It counts what is installed in the environment that runs it, so which build of PyTorch that is decides much of it;
`versions` in the result names the build.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common import header, write

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"


def needed(lines: Iterable[str]) -> dict[str, Distribution]:
    """The installed packages that requirements name, and what these need in turn, by name.

    Raises:
        PackageNotFoundError: One of the requirements themselves is not installed.
    """
    waiting = [Requirement(line) for line in (line.partition("#")[0].strip() for line in lines) if line]
    seen: dict[str, set[str]] = {}
    found = {canonicalize_name(each.name): distribution(each.name) for each in waiting if _applies(each, {""})}
    while waiting:
        requirement = waiting.pop()
        if (name := canonicalize_name(requirement.name)) not in found:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:  # as what another platform needs
                continue
        elif name in seen and requirement.extras <= seen[name]:
            continue
        seen[name] = seen.get(name, set()) | requirement.extras
        others = map(Requirement, found[name].requires or ())
        waiting += [other for other in others if _applies(other, {"", *requirement.extras})]
    return found


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement is one here, of a package that is wanted with some extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def size(package: Distribution) -> int:
    """Bytes of a package's files, as they lie on the disk."""
    paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes = {name: size(package) for name, package in needed(REQUIREMENTS.read_text("utf-8").splitlines()).items()}
    largest = {name: round(sizes[name] / 1e9, 3) for name in sorted(sizes, key=lambda name: -sizes[name])[:5]}
    total = round(sum(sizes.values()) / 1e9, 2)
    write(args.out, {**header("install"), "packages": len(sizes), "gigabytes": total, "largest_gb": largest})
    print(f"{len(sizes)} packages, {total} GB; the largest: {largest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
