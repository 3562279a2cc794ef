"""The tree is the data flow: imports go one way, outside libraries have one home, built-ins use the public door."""

from pathlib import Path

ROOT = Path(__file__).parents[1] / "espace"
ROOMS = [  # a room imports only from rooms above it
    "errors",
    "chain",
    "registry",
    "data",
    "model",
    "contracts",
    "config",
    "training",
    "runs",
    "compare",
    "parts",
    "testing",
    "cli",
    "__main__",
]
CHAMBERS = ["batch", "reading", "encoding", "auditing", "stream", "simulator", "raw"]  # of data/, likewise
HOMES = {
    "pytorch_lightning": ("training", "data.stream", "runs.trainer", "cli"),
    "lightning_fabric": ("training", "runs.trainer"),
    "omegaconf": ("config",),
    "pyarrow": ("data", "runs", "contracts"),
    "pluggy": ("registry",),
    "typer": ("cli",),
    "matplotlib": ("runs.figures",),
}
FILE, FUNCTION, MEDIAN, TENTH = (
    350,
    40,
    6,
    16,
)  # lines at most: of a file, of a function, of half and of nine tenths of them
