"""Make an environment for each peer, with the versions that were measured.

    python -m tests.bench.peers.install [--only fuxictr ...] [--folder /tmp/peers]

Python 3.11, for which all of them have wheels. An environment that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

TORCH = ["torch==2.13.0", "numpy==2.4.6", "pandas==3.1.1", "pyarrow==26.0.1", "scikit-learn==1.9.1", "psutil==7.2.2"]
PACKAGES = {
    "torch_rechub": ["torch-rechub==0.9.0", *TORCH],
    "deepctr_torch": ["deepctr-torch==0.3.0", "requests", *TORCH],
    "fuxictr": ["fuxictr==2.3.10", "polars==1.44.2", "ray==2.60.0", *TORCH],
    "nextrec": ["nextrec==0.6.14", "torch==2.13.0", "psutil==7.2.2"],  # it pins pandas 1.5.3 and what goes with it
    "deepctr_tf": [
        "deepctr==0.9.4",
        "tensorflow-cpu==2.15.1",
        "numpy==1.26.4",
        "pandas==2.1.4",
        "pyarrow==17.0.0",
        "scikit-learn==1.9.1",
        "psutil==7.2.2",
    ],
}
REMOVED = {
    "nextrec": ["torchvision"]
}  # it does not load beside the CPU build of torch, and transformers would import it


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / name / "bin" / "python"


def install(folder: Path, name: str) -> None:
    """Make one environment; a half-made one of an earlier try is made anew."""
    done = folder / name / "installed"
    if done.exists():
        return
    venv.create(folder / name, clear=True, with_pip=True)
    pip = [str(python_of(folder, name)), "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", *PACKAGES[name]], check=True)
    for package in REMOVED.get(name, ()):
        subprocess.run([*pip, "uninstall", "--yes", package], check=True)
    done.touch()


def main() -> None:
    """Install what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/peers"))
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"Python {sys.version.split()[0]}: not all peers have wheels for it. Use Python 3.11.")
    for name in options.only:
        print(name, flush=True)
        install(options.folder, name)


if __name__ == "__main__":
    main()
