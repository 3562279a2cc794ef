"""From a checked configuration to what reads its data: the encoder, columns that metrics want, sizes of tables."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from espace.config import Config
from espace.data.encoding.columns import Sequence, columns_as_text, is_categorical
from espace.data.encoding.encode import Encoder, Layout, NumberStats
from espace.data.encoding.kinds import Kind
from espace.data.encoding.table import Extra
from espace.data.encoding.vocabulary import Vocabulary
from espace.model.model import Model
from espace.registry.registry import Registry
from espace.runs.build import build_model, chain_of, features_of, labels_of


def build_encoder(
    config: Config,
    tables: Mapping[str, Vocabulary | int],
    numbers: Mapping[str, NumberStats],
    limits: Mapping[str, tuple[float, float]] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Encoder:
    """The encoder, from what was learnt of the data; `limits` of values, where labels will be encoded."""
    return Encoder(
        features_of(config),
        chain_of(config),
        labels_of(config),
        dim=config.embedding.dim,
        weight=config.data.weight,
        extras=extras_of(config),
        policy=config.data.violations,
        limits=limits,
        known_by=config.data.known_by,
        tables=tables,
        numbers=numbers,
        kinds=kinds,
    )


def rows_at_once(config: Config) -> int:
    """Rows to judge or predict in one go: so few that what towers hold of them stays in a processor's cache.

    Each event of a history is as much work as a row. 16,384 rows with histories of 50 took 5 times as long as 8 times
    2,048.
    """
    return 2_048 if any(isinstance(f, Sequence) for f in features_of(config)) else 4_096


def extras_of(config: Config) -> dict[str, Extra]:
    """Columns that metrics want besides the labels: potential outcomes, and what the options `by` and `column` name."""
    read = [metric.reads for metric in config.metrics.values()]
    keys, truths = ([columns[option] for columns in read if option in columns] for option in ("by", "column"))
    found: dict[str, Extra] = dict.fromkeys(keys, "key")
    found |= dict.fromkeys(config.data.potential.values(), "value")
    return found | dict.fromkeys(truths, "probability")


def text_of(config: Config) -> list[str]:
    """The columns of categories and lists, in which text is to stay text, whatever else reads them."""
    keys = [column for column, kind in extras_of(config).items() if kind == "key"]
    return [*dict.fromkeys([*columns_as_text(features_of(config)), *keys])]


def layout_without_data(config: Config) -> Layout:
    """A layout with empty vocabularies, but hashed features of their real size: enough to count all but the tables."""
    features = features_of(config)
    tables = {f.name: getattr(f, "buckets", None) or 0 for f in features if is_categorical(f)}
    sizes = {n: t if isinstance(t, int) else len(t) + 1 for n, t in tables.items()}
    return build_encoder(config, sizes, {}).layout


def build_model_probe(config: Config, registry: Registry) -> Model:
    """The model on the "meta" device: every shape and parameter count, no memory. Raises what building raises."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_model(config, registry, layout_without_data(config))
