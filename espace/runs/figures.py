"""Pictures of a run and of a comparison, drawn by matplotlib into PNG files."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fonts of systems that have Chinese, Japanese and Korean letters, which matplotlib's own lacks.
_MORE_LETTERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)

Curves = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
Points = Sequence[tuple[float, float]]  # mean and half the width of its interval


Interval = tuple[float, float, float]  # mean, low and high


def _read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                steps, values = found.setdefault(line["name"], ([], []))
                steps.append(int(line["step"]))
                values.append(float(line["value"]))
    return found


def _pyplot() -> ModuleType:
    """matplotlib's, which is slow to import, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    there = {font.name for font in font_manager.fontManager.ttflist}
    pyplot.rcParams["font.sans-serif"] = ["DejaVu Sans", *(name for name in _MORE_LETTERS if name in there)]
    module: ModuleType = pyplot
    return module


def _save(figure: Figure, target: Path) -> None:
    """Write a picture. A letter that no font of this machine has is a box in it, and no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(target, dpi=120)


def draw_learning(metrics: Path, target: Path) -> None:
    """Losses and AUCs over the steps."""
    plt = _pyplot()
    found = _read_metrics(metrics)
    height = max(4.0, 0.2 * sum(name.endswith("/auc") for name in found))  # of a legend with a line for each
    figure, (losses, aucs) = plt.subplots(1, 2, figsize=(11, height), constrained_layout=True)
    for name, (steps, values) in found.items():
        if name in ("train/loss", "val/loss"):
            losses.plot(steps, values, marker="o" if name.startswith("val") else None, label=name)
        elif name.endswith("/auc"):
            aucs.plot(steps, values, marker="o", label=name.split("/")[1])
    for axes, title in ((losses, "loss"), (aucs, "validation AUC, each in its own space")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize=8)
    _save(figure, target)
    plt.close(figure)


def draw_gates(metrics: Path, target: Path) -> None:
    """The mean weight of every expert over the steps, a plot for each gate."""
    plt = _pyplot()
    gates: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for name, line in _read_metrics(metrics).items():
        if name.startswith("train/gate/"):
            gate, _, expert = name.removeprefix("train/gate/").rpartition("/")
            gates.setdefault(gate, {})[expert] = line
    if not gates:
        return
    width = min(len(gates), 3)
    height = -(-len(gates) // width)
    size = (4.6 * width, 3.4 * height)
    figure, axes = plt.subplots(height, width, figsize=size, squeeze=False, constrained_layout=True)
    for plot in axes.flat[len(gates) :]:
        plot.set_axis_off()
    for plot, (gate, experts) in zip(axes.flat, gates.items(), strict=False):
        for expert, (steps, shares) in experts.items():
            plot.plot(steps, shares, marker="." if len(steps) < 20 else None, label=expert)
        plot.set(title=gate, xlabel="step", ylabel="mean weight", ylim=(0, 1))
        plot.title.set_fontsize(9)
        plot.legend(fontsize=7)
    _save(figure, target)
    plt.close(figure)


def draw_calibration(spaces: Mapping[str, Mapping[str, list[float]]], target: Path) -> None:
    """Observed over predicted in bins, a plot for each space."""
    plt = _pyplot()
    width = min(len(spaces), 3)
    height = -(-len(spaces) // width) if width else 1
    figure, axes = plt.subplots(
        height, max(width, 1), figsize=(4 * max(width, 1), 3.6 * height), squeeze=False, constrained_layout=True
    )
    for plot in axes.flat[len(spaces) :]:
        plot.set_axis_off()
    for plot, (space, curve) in zip(axes.flat, spaces.items(), strict=False):
        pairs = [(p, o) for p, o in zip(curve["predicted"], curve["observed"], strict=True) if p > 0 and o == o]
        if pairs:
            highest = max(max(pair) for pair in pairs)
            plot.plot([0, highest], [0, highest], color="0.7", linewidth=1)
            plot.plot(*zip(*pairs, strict=True), marker="o", markersize=4)
        plot.set(title=space, xlabel="predicted", ylabel="observed")
        plot.title.set_fontsize(9)
    _save(figure, target)
    plt.close(figure)


def draw_shares(metric: str, shares: Sequence[float], lines: Mapping[str, Points], target: Path) -> None:
    """A line for each variant; with one share a point for each."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.4), constrained_layout=True)
    for number, (name, points) in enumerate(lines.items()):
        means, halves = zip(*points, strict=True)
        places = shares if len(shares) > 1 else [number]
        errors = [0 if math.isnan(half) else half for half in halves]
        axes.errorbar(places, means, yerr=errors, marker="o", markersize=4, capsize=3, linewidth=1.2, label=name)
    if len(shares) > 1:
        axes.set_xlabel("share of the training rows")
        axes.legend(fontsize=8)
    else:
        axes.set_xticks(range(len(lines)), list(lines), rotation=30 if len(lines) > 6 else 0)
    axes.set(title=metric, ylabel=f"{metric}, test")
    _save(figure, target)
    plt.close(figure)


def draw_conditions(
    title: str,
    conditions: Sequence[str],
    intervals: Mapping[str, Mapping[str, Sequence[Interval | None]]],
    target: Path,
) -> None:
    """A dot and a bar for each variant below each other, condition by condition from the top."""
    plt = _pyplot()
    variants = max(len(of_share) for of_share in intervals.values())
    size = (5.6 * len(intervals), 1.4 + len(conditions) * (0.3 + 0.18 * variants))
    figure, axes = plt.subplots(1, len(intervals), figsize=size, squeeze=False, sharey=True, constrained_layout=True)
    for plot, (share, of_share) in zip(axes.flat, intervals.items(), strict=True):
        plot.axvline(0, color="0.7", linewidth=1)
        for number, (name, found) in enumerate(of_share.items()):
            there = {place: one for place, one in enumerate(found) if one is not None}
            heights = [place + 0.7 * ((number + 0.5) / variants - 0.5) for place in there]
            means = [mean for mean, _, _ in there.values()]
            halves = [0 if math.isnan(high) else high - mean for mean, _, high in there.values()]
            plot.errorbar(means, heights, xerr=halves, fmt="o", markersize=4, capsize=2, linewidth=1.2, label=name)
        plot.set(title=share if len(intervals) > 1 else "", xlabel=title)
        plot.set_yticks(range(len(conditions)), list(conditions))
        plot.set_ylim(len(conditions) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    _save(figure, target)
    plt.close(figure)
