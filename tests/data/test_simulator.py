"""The laws of the simulated funnel: its truth is the truth of its draws, and every knob moves one thing."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from espace.chain.chain import Chain
from espace.data.encoding.labels import resolve
from espace.data.simulator import arithmetic, simulator, world
from espace.data.simulator.simulator import Simulator
from espace.errors import ConfigError, DataError

ROWS = 300_000
SMALL: dict[str, Any] = {"users": 40, "items": 30, "piece_rows": 700}
CHANGES: dict[str, Any] = {
    "seed": 1,
    "chain": "impression -> click -> order",
    "users": 4_999,
    "items": 1_999,
    "rho": 0.4,
    "transfer": 0.5,
    "kappa": 1.0,
    "value_mean": 3.0,
    "value_spread": 0.1,
    "value_noise": 0.1,
    "tau": 1.0,
    "gamma": 0.5,
    "delta": 0.5,
    "click_rate": 0.2,
    "conversion_rate": 0.2,
    "rates": {"click": 0.3},
    "user_skew": 0.5,
    "item_skew": 0.5,
    "latent": 5,
    "group_share": 0.4,
    "exposure": "uniform",
    "piece_rows": 1_000,
}


def read(reader: Simulator, *columns: str) -> pa.Table:
    return pa.concat_tables([reader.read(piece, columns or reader.schema.names) for piece in reader.pieces])


def simulate(rows: int = ROWS, split: str = "test", **options: Any) -> dict[str, np.ndarray]:
    reader = Simulator(rows, split, **options)
    table = read(reader, *(f.name for f in reader.schema if not pa.types.is_list(f.type)))
    return {name: table[name].to_numpy() for name in table.column_names}


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """The share of pairs in the right order; scores without ties."""
    ranks = np.argsort(np.argsort(score)) + 1
    positives = label.sum()
    return (ranks[label == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))


def deviations(label: np.ndarray, truth: np.ndarray, bins: int = 20) -> np.ndarray:
    """How many standard errors the labels are from their probabilities, in bins of equal size, (bins,)."""
    order = np.argsort(truth, kind="stable")
    parts = [(label[i], truth[i]) for i in np.array_split(order, bins)]
    return np.array([(y - p).sum() / np.sqrt((p * (1 - p)).sum()) for y, p in parts])


def gap(rows: dict[str, np.ndarray]) -> float:
    """Mean probability to convert of clicked impressions less that of all."""
    q = rows["true_conversion_given_do_click"]
    return np.average(q, weights=rows["true_click"]) - q.mean()


def truths(rows: dict[str, np.ndarray]) -> dict[tuple[int, int, int], tuple[float, float]]:
    """The true probabilities of each user, item and context that occurs."""
    keys = zip(*(rows[c].tolist() for c in ("user_id", "item_id", "context")), strict=True)
    values = zip(rows["true_click"].tolist(), rows["true_conversion"].tolist(), strict=True)
    return dict(zip(keys, values, strict=True))


@pytest.fixture(scope="module")
def default() -> dict[str, np.ndarray]:
    return simulate()


@pytest.fixture(scope="module")
def confounded() -> dict[str, np.ndarray]:
    return simulate(gamma=1.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 1.0},
        {"rho": -0.8},
        {"kappa": 2.0, "delta": 1.5},
        {"click_rate": 0.02, "conversion_rate": 0.5},
        {"seed": 7, "click_rate": 0.6, "conversion_rate": 0.03},
    ],
    ids=str,
)
def test_clicks_and_conversions_are_as_frequent_as_asked_for(options: dict[str, Any]) -> None:
    rows = simulate(**options)
    clicked = rows["click"] == 1
    assert rows["click"].mean() == pytest.approx(options.get("click_rate", 0.1), rel=0.03)
    assert rows["conversion"][clicked].mean() == pytest.approx(options.get("conversion_rate", 0.15), rel=0.08)
    assert rows["true_conversion"].sum() / rows["true_click"].sum() == pytest.approx(
        options.get("conversion_rate", 0.15), rel=0.02
    )


@pytest.mark.parametrize("world", ["default", "confounded"])
def test_every_label_is_a_draw_of_its_truth_in_its_own_space(world: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(world)
    clicked = rows["click"] == 1
    pairs = [
        (rows["click"], rows["true_click"]),
        (rows["conversion"], rows["true_conversion"]),
        (rows["conversion"][clicked], rows["true_conversion_given_click"][clicked]),
        (rows["potential_conversion"], rows["true_conversion_given_do_click"]),
    ]
    for label, truth in pairs:
        z = deviations(label, truth)
        assert np.abs(z).max() < 4
        assert (z**2).mean() < 2.3  # the 0.999 quantile of chi-squared with 20 degrees of freedom, over 20


def test_the_truths_obey_the_chain_rule_and_are_probabilities(confounded: dict[str, np.ndarray]) -> None:
    p, q = confounded["true_click"], confounded["true_conversion_given_click"]
    np.testing.assert_allclose(p * q, confounded["true_conversion"], rtol=1e-12)
    for name in (n for n in confounded if n.startswith("true_")):
        assert confounded[name].min() > 0
        assert confounded[name].max() < 1


def test_a_conversion_is_a_click_whose_potential_conversion_is_one(default: dict[str, np.ndarray]) -> None:
    assert np.array_equal(default["conversion"], default["click"] * default["potential_conversion"])
    assert default["potential_conversion"][default["click"] == 0].sum() > 1_000


@pytest.mark.parametrize("rho", [-1.0, -0.5, 0.5, 1.0])
def test_the_sign_of_rho_is_the_sign_of_the_gap_between_clicked_and_all_impressions(rho: float) -> None:
    rows = simulate(100_000, rho=rho)
    clicked = rows["click"] == 1
    drawn = rows["potential_conversion"][clicked].mean() - rows["potential_conversion"].mean()
    assert np.sign(gap(rows)) == np.sign(drawn) == np.sign(rho)
    assert abs(gap(rows)) > 0.03


def test_without_rho_and_gamma_clicked_impressions_convert_like_all() -> None:
    assert abs(gap(simulate(rho=0.0))) < 0.004


def test_the_wishes_correlate_by_rho_where_the_logits_have_the_deviations_kappa_and_tau() -> None:
    rows = simulate(rho=-0.3, kappa=0.8, tau=1.6)
    click, convert = (np.log(p / (1 - p)) for p in (rows["true_click"], rows["true_conversion_given_click"]))
    assert np.corrcoef(click, convert)[0, 1] == pytest.approx(-0.3, abs=0.02)
    assert (click.std(), convert.std()) == pytest.approx((0.8, 1.6), rel=0.02)


def test_only_a_hidden_common_cause_separates_the_two_estimands(
    default: dict[str, np.ndarray], confounded: dict[str, np.ndarray]
) -> None:
    names = ("true_conversion_given_click", "true_conversion_given_do_click")
    observed, forced = (default[name] for name in names)
    np.testing.assert_allclose(observed, forced, rtol=1e-12)
    observed, forced = (confounded[name] for name in names)
    assert (observed > forced).all()
    assert observed.mean() > 1.5 * forced.mean()


@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_the_means_over_the_hidden_cause_agree_with_an_integral_on_a_fine_grid(gamma: float) -> None:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    a, b = np.meshgrid(np.linspace(-8, 4, 7), np.linspace(-8, 4, 7))
    grid = np.linspace(-10, 10, 4_001)
    density = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    quick, exact = (
        sum(w * np.stack([sigmoid(a + gamma * h), sigmoid(a + gamma * h) * sigmoid(b + gamma * h)]) for h, w in pairs)
        for pairs in (arithmetic.nodes(gamma), zip(grid, density, strict=True))
    )
    np.testing.assert_allclose(quick[1] / quick[0], exact[1] / exact[0], atol=1e-4)


def test_without_kappa_every_impression_is_clicked_alike_and_clicks_select_nothing() -> None:
    rows = simulate(100_000, kappa=0.0)
    np.testing.assert_allclose(rows["true_click"], 0.1, rtol=1e-6)
    assert abs(gap(rows)) < 1e-12


def test_without_tau_every_click_converts_alike() -> None:
    np.testing.assert_allclose(simulate(1_000, tau=0.0)["true_conversion_given_click"], 0.15, rtol=1e-6)


def test_delta_changes_conversions_of_seldom_clicked_items_alone() -> None:
    plain, ruled = (simulate(20_000, delta=d, items=30) for d in (0.0, 1.5))
    q, r = (rows["true_conversion_given_click"] for rows in (plain, ruled))
    change = np.log(r / (1 - r)) - np.log(q / (1 - q))
    by_item = [change[plain["item_id"] == i].std() for i in range(1, 31)]
    clicks = [plain["true_click"][plain["item_id"] == i].mean() for i in range(1, 31)]
    changed = np.array(by_item) > 1e-6
    assert 5 < changed.sum() < 25
    assert np.mean(np.array(clicks)[changed]) < np.mean(np.array(clicks)[~changed])
    assert np.array_equal(plain["click"], ruled["click"])


def test_with_all_of_the_variance_in_groups_ids_tell_nothing_more() -> None:
    rows = simulate(20_000, group_share=1.0)
    cells = (rows["user_group"] * 16 + rows["item_category"]) * 8 + rows["context"]
    for truth in (rows["true_click"], rows["true_conversion"]):
        first = dict(zip(cells[::-1].tolist(), truth[::-1].tolist(), strict=True))
        np.testing.assert_allclose(truth, [first[cell] for cell in cells.tolist()], rtol=1e-9)


def test_knobs_of_conversion_leave_visits_and_clicks_as_they_are() -> None:
    plain = simulate(5_000)
    for options in ({"rho": -0.5}, {"tau": 2.0}, {"delta": 1.0}, {"conversion_rate": 0.3}):
        changed = simulate(5_000, **options)
        for name in ("user_id", "item_id", "context", "user_group", "item_category", "click", "true_click"):
            assert np.array_equal(plain[name], changed[name]), (options, name)
        assert not np.array_equal(plain["true_conversion"], changed["true_conversion"])


def test_a_piece_read_alone_equals_the_same_piece_read_in_sequence() -> None:
    reader = Simulator(3_000, "train", **SMALL)
    assert [p.rows for p in reader.pieces] == [700, 700, 700, 700, 200]
    in_sequence = [reader.read(piece, reader.schema.names) for piece in reader.pieces]
    for index in (3, 0, 4):
        simulator._world.cache_clear()
        alone = pickle.loads(pickle.dumps(Simulator(3_000, "train", **SMALL)))
        assert alone.read(alone.pieces[index], reader.schema.names).equals(in_sequence[index])
    assert np.array_equal(pa.concat_tables(in_sequence)["row"].to_numpy(), np.arange(3_000))


def test_more_rows_leave_the_first_ones_as_they_are() -> None:
    few, many = (read(Simulator(rows, "train", gamma=1.0, **SMALL)) for rows in (1_000, 5_000))
    assert many.slice(0, 1_000).equals(few)


def test_pieces_and_splits_and_seeds_differ_in_their_rows() -> None:
    first, second = (simulate(1_400, "train", **SMALL)["user_id"][i : i + 700] for i in (0, 700))
    other_split, other_seed = simulate(700, "test", **SMALL)["user_id"], simulate(700, seed=1, **SMALL)["user_id"]
    for one, other in ((first, second), (first, other_split), (other_split, other_seed)):
        assert (one == other).mean() < 0.2


def test_splits_of_any_size_and_exposure_share_one_world() -> None:
    train = truths(simulate(50_000, "train", gamma=1.0, **SMALL))
    for rows in (simulate(3_000, "test", gamma=1.0, **SMALL), simulate(3_000, gamma=1.0, exposure="uniform", **SMALL)):
        known = {key: value for key, value in truths(rows).items() if key in train}
        assert len(known) > 1_000
        assert known == {key: train[key] for key in known}


def test_logged_exposure_follows_zipf_and_uniform_exposure_shows_all_alike() -> None:
    options: dict[str, Any] = {"users": 50, "items": 50, "user_skew": 0.6, "item_skew": 1.2}
    logged, uniform = (simulate(200_000, exposure=e, **options) for e in ("logged", "uniform"))
    for name, skew in (("user_id", 0.6), ("item_id", 1.2)):
        expected = np.arange(1, 51.0) ** -skew
        shares = np.sort(np.bincount(logged[name], minlength=51)[1:])[::-1] / 200_000
        np.testing.assert_allclose(shares, expected / expected.sum(), rtol=0.1)
        np.testing.assert_allclose(np.bincount(uniform[name])[1:] / 200_000, 1 / 50, rtol=0.1)


def test_ids_start_at_one_and_do_not_reveal_by_their_order_who_is_seen_most(default: dict[str, np.ndarray]) -> None:
    for name, number in (("user_id", 5_000), ("item_id", 2_000)):
        counts = np.bincount(default[name], minlength=number + 1)
        assert (counts[0], len(counts)) == (0, number + 1)
        assert abs(np.corrcoef(np.arange(1, number + 1), np.log1p(counts[1:]))[0, 1]) < 0.08
    assert [len(np.unique(default[c])) for c in ("user_group", "item_category", "context")] == [16, 16, 8]


def test_some_columns_equal_those_of_the_full_read_in_the_order_of_the_schema() -> None:
    reader = Simulator(2_000, "test", gamma=0.7, **SMALL)
    whole = reader.read(reader.pieces[1], reader.schema.names)
    assert whole.schema == reader.schema
    for columns in (["true_click", "user_id"], ["conversion"], ["context", "row"], list(reversed(whole.column_names))):
        ordered = [name for name in whole.column_names if name in columns]
        assert reader.read(reader.pieces[1], columns).equals(whole.select(ordered))


def test_the_options_are_the_keyword_only_parameters_and_each_changes_the_fingerprint() -> None:
    parameters = inspect.signature(Simulator).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(CHANGES)
    readers = [Simulator(1_000, "train"), Simulator(1_001, "train"), Simulator(1_000, "test")]
    readers += [Simulator(1_000, "train", **{name: value}) for name, value in CHANGES.items()]
    assert len({r.fingerprint for r in readers}) == len(readers)
    assert Simulator(1_000, "train").fingerprint == readers[0].fingerprint


@pytest.mark.parametrize("seed", [0, 1])
def test_at_the_defaults_the_truth_ranks_every_label_well(seed: int) -> None:
    rows = simulate(seed=seed)
    clicked = rows["click"] == 1
    q = rows["true_conversion_given_click"]
    assert auc(rows["true_click"], rows["click"]) == pytest.approx(0.785, abs=0.01)
    assert auc(q[clicked], rows["conversion"][clicked]) == pytest.approx(0.774, abs=0.015)
    assert auc(q, rows["potential_conversion"]) == pytest.approx(0.786, abs=0.01)
    assert rows["conversion"].sum() > 4_000


def test_a_world_of_one_user_and_one_item_and_the_ends_of_every_range_stay_finite() -> None:
    ends: dict[str, Any] = {"rho": -1.0, "kappa": 5.0, "tau": 5.0, "gamma": 3.0, "delta": -3.0, "latent": 1}
    ends |= {"click_rate": 1e-6, "conversion_rate": 1 - 1e-6, "user_skew": 5.0, "item_skew": 5.0, "group_share": 0.0}
    for options in ({"users": 1, "items": 1}, ends):
        assert all(np.isfinite(column).all() for column in simulate(2_000, **options).values())


# --- histories


def histories(rows: int, split: str = "test", **options: Any) -> dict[int, list[int]]:
    table = read(Simulator(rows, split, **options), "user_id", "history")
    return dict(zip(table["user_id"].to_pylist(), table["history"].to_pylist(), strict=True))


def test_a_user_has_one_history_whatever_the_row_the_split_and_the_exposure() -> None:
    one, *others = (
        histories(5_000, split, **SMALL, exposure=exposure)
        for split, exposure in (("train", "logged"), ("test", "logged"), ("test", "uniform"))
    )
    assert len(one) == SMALL["users"]
    assert all(other == one for other in others)
    table = read(Simulator(3_000, "train", **SMALL), "user_id", "history")
    assert all(row["history"] == one[row["user_id"]] for row in table.to_pylist())


def test_a_history_has_the_last_clicks_and_their_categories() -> None:
    table = read(Simulator(3_000, "train", **SMALL), "item_id", "item_category", "history", "history_category")
    category = dict(zip(table["item_id"].to_pylist(), table["item_category"].to_pylist(), strict=True))
    for row in table.slice(0, 200).to_pylist():
        assert row["history_category"] == [category[item] for item in row["history"]]


@pytest.mark.parametrize(("rate", "least", "most"), [(0.1, 0, 50), (0.9, 50, 50), (1e-6, 0, 1)])
def test_a_history_has_at_most_50_clicks(rate: float, least: int, most: int) -> None:
    lengths = [len(h) for h in histories(3_000, **SMALL, kappa=0.1, click_rate=rate).values()]
    assert least <= min(lengths) <= max(lengths) <= most


def test_users_click_more_on_categories_that_they_clicked_before() -> None:
    table = read(Simulator(100_000, "test"), "item_category", "history_category", "click")
    pairs = zip(table["item_category"].to_pylist(), table["history_category"].to_pylist(), strict=True)
    share = np.array([past.count(category) / max(len(past), 1) for category, past in pairs])
    click = table["click"].to_numpy()
    often, never = click[share > 0.15], click[share == 0]
    assert often.mean() > 1.5 * never.mean()


@pytest.mark.parametrize("source", [0, -5, 1.5, True, "train.parquet", None])
def test_a_source_that_is_no_number_of_rows_is_refused(source: Any) -> None:
    with pytest.raises(DataError, match=r"data\.train: .* is not a number of rows.* as in train: 100000"):
        Simulator(source, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 1.5}, r"data\.rho: 1\.5 is not a number >= -1 and <= 1\. Write one, or leave it out for 0\.5"),
        ({"rho": float("nan")}, r"data\.rho: nan is not a number"),
        ({"click_rate": 0.0}, r"data\.click_rate: 0\.0 is not a number > 0 and < 1"),
        ({"conversion_rate": 1}, r"data\.conversion_rate: 1 is not a number > 0 and < 1"),
        ({"users": 0}, r"data\.users: 0 is not a whole number >= 1"),
        ({"items": 10.5}, r"data\.items: 10\.5 is not a whole number"),
        ({"item_skew": -0.1}, r"data\.item_skew: -0\.1 is not a number >= 0"),
        ({"seed": "x"}, r"data\.seed: 'x' is not a whole number >= 0"),
        ({"exposure": "random"}, r"data\.exposure: 'random' is not 'logged' or 'uniform'"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Simulator(10, "train", **options)


def test_all_options_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="kappa") as caught:
        Simulator(10, "train", kappa=-1.0, piece_rows=0, gamma=9.0)
    assert len(caught.value.problems) == 3


def test_an_unknown_column_is_refused_with_the_nearest_name() -> None:
    reader = Simulator(10, "train")
    with pytest.raises(DataError, match=r"no column 'user'\. Did you mean 'user_id'"):
        reader.read(reader.pieces[0], ["user"])


def test_the_hidden_cause_is_no_column() -> None:
    assert "hidden" not in Simulator(10, "train", gamma=1.0).schema.names


def test_it_is_registered_by_its_name() -> None:
    known: dict[str, Any] = {}
    simulator.register_readers(known.__setitem__)
    assert known == {"simulator": Simulator}


# --- any chain

FUNNELS: dict[str, dict[str, Any]] = {
    "esm2": {
        "chain": ("impression -> click", "click -> action else other", "action -> buy", "other -> buy"),
        "rates": {"click": 0.3, "action_given_click": 0.3, "buy_given_action": 0.5, "buy_given_other": 0.1},
    },
    "net": {"chain": "click -> pay -> refund else keep", "rates": {"pay": 0.4, "refund_given_pay": 0.3}},
    "view-through": {
        "chain": ("impression -> click else pass", "click -> conversion", "pass -> conversion"),
        "rates": {"conversion_given_pass": 0.03},
    },
    "choice": {
        "chain": ("impression -> a | b", "a -> c | d | e else f", "a -> g", "c -> h"),
        "rates": {"a": 0.4, "b": 0.3, "c_given_a": 0.3, "h_given_c": 0.5},
    },
    "merge of merges": {
        "chain": (
            "impression -> click else pass",
            "click -> visit else away",
            "pass -> visit else away",
            "visit -> buy",
            "away -> buy",
        ),
        "rates": {"click": 0.4, "visit_given_click": 0.6},
    },
}
every_funnel = pytest.mark.parametrize("options", FUNNELS.values(), ids=FUNNELS)


def steps_of(chain: Chain) -> list[tuple[str, str, str]]:
    """(stage, parent, what its names end with) of every step but those that leave the root."""
    return [(s, p, f"{s}_given_{p}" if len(chain.parents(s)) > 1 else s) for p, s in chain.edges]


def happened(chain: Chain, rows: dict[str, np.ndarray], stage: str) -> np.ndarray:
    if stage == chain.root:
        return np.ones(len(rows["row"]), bool)
    raw = {s: rows[s] for s in chain.labelled}
    return resolve(chain, raw, "error").values[:, chain.stages.index(stage) - 1] == 1


@every_funnel
@pytest.mark.parametrize("more", [{}, {"gamma": 1.0, "rho": -0.5, "delta": 1.0}], ids=str)
def test_every_step_of_a_chain_is_as_frequent_as_asked_for(options: dict[str, Any], more: dict[str, Any]) -> None:
    rows, chain = simulate(**options, **more), Chain.parse(options["chain"])
    for t in chain.transitions:
        parent = happened(chain, rows, t.parent)
        for stage in t.outcomes:
            leaves_root = t.parent == chain.root
            name = stage if leaves_root else f"{stage}_given_{t.parent}"
            asked = options["rates"].get(name, 0.1 if leaves_root else 0.15)
            deviation = np.sqrt(asked * (1 - asked) / parent.sum())
            assert rows[stage][parent].mean() == pytest.approx(asked, abs=4 * deviation + 0.02 * asked)
            reached = 1.0 if leaves_root else rows[f"true_{t.parent}"]
            weights = np.broadcast_to(reached, parent.shape)
            assert np.average(rows[f"true_{name}"], weights=weights) == pytest.approx(asked, rel=0.03)


@every_funnel
@pytest.mark.parametrize("more", [{}, {"gamma": 1.0, "rho": -0.5}], ids=str)
def test_every_label_of_a_chain_is_a_draw_of_its_truth_in_its_own_space(
    options: dict[str, Any], more: dict[str, Any]
) -> None:
    rows, chain = simulate(**options, **more), Chain.parse(options["chain"])
    pairs = [(happened(chain, rows, s), rows[f"true_{s}"]) for s in chain.stages[1:]]
    for stage, parent, name in steps_of(chain):
        reached = happened(chain, rows, parent)
        truth = rows[f"true_{stage}_given_{parent}"]
        pairs.append((happened(chain, rows, stage)[reached], truth[reached]))
        pairs.append((rows[f"potential_{name}"], rows[f"true_{stage}_given_do_{parent}"]))
    for label, truth in pairs:
        z = deviations(label, truth)
        assert np.abs(z).max() < 4.5
        assert (z**2).mean() < 2.7


@every_funnel
def test_the_truths_of_a_chain_obey_total_probability(options: dict[str, Any]) -> None:
    rows, chain = simulate(2_000, **options, gamma=1.0), Chain.parse(options["chain"])
    for stage in chain.stages[1:]:
        parents = [p for p in chain.parents(stage) if p != chain.root]
        products = [rows[f"true_{p}"] * rows[f"true_{stage}_given_{p}"] for p in parents]
        if parents == list(chain.parents(stage)):
            np.testing.assert_allclose(sum(products), rows[f"true_{stage}"], rtol=1e-12)
        assert rows[f"true_{stage}"].max() < 1
    for t in (t for t in chain.transitions if t.otherwise and t.parent != chain.root):
        total = sum(rows[f"true_{c}_given_{t.parent}"] for c in t.children)
        np.testing.assert_allclose(total, 1, rtol=1e-12)


@every_funnel
def test_the_labels_of_a_chain_contradict_nothing_and_are_potential_outcomes_where_the_parent_happened(
    options: dict[str, Any],
) -> None:
    rows, chain = simulate(20_000, **options), Chain.parse(options["chain"])
    assert not resolve(chain, {s: rows[s] for s in chain.labelled}, "error").broken.any()
    for stage, parent, name in steps_of(chain):
        reached = happened(chain, rows, parent)
        assert np.array_equal(rows[f"potential_{name}"][reached] == 1, happened(chain, rows, stage)[reached])
    assert not {s for s in chain.otherwise if s in rows}


def test_follow_ups_of_one_parent_are_independent_and_outcomes_of_one_choice_exclude_each_other() -> None:
    rows = simulate(chain=("impression -> like", "impression -> a | b"), click_rate=0.4, kappa=0.0)
    assert not (rows["a"] & rows["b"]).any()
    assert (rows["like"] & rows["a"]).mean() == pytest.approx(0.16, abs=0.004)


def test_a_history_has_the_first_stage_whatever_it_is_called() -> None:
    lengths = [len(h) for h in histories(3_000, **SMALL, chain="pair -> view", click_rate=0.3).values()]
    assert 0.2 < np.mean(lengths) / world.PAST < 0.4


def test_a_chain_is_the_same_world_however_it_is_written() -> None:
    whole = Simulator(2_000, "test", chain="impression -> click -> conversion -> review", **SMALL)
    lines = ["impression -> click", "click -> conversion", "conversion -> review"]
    assert read(Simulator(2_000, "test", chain=lines, **SMALL)).equals(read(whole))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chain": "click"}, r"data\.chain, line 1: 'click' has no arrow"),
        ({"chain": ("a -> b", "c -> d")}, r"data\.chain: it has 2 roots"),
        ({"chain": "impression -> context"}, r"data\.chain: 'context' would be two things in the simulator\. Call"),
        ({"chain": "impression -> user"}, r"data\.chain: 'user' would be two things"),
        ({"chain": "impression -> click -> true_click"}, r"data\.chain: 'true_click' would be two things"),
        ({"rates": {"clik": 0.1}}, r"data\.rates: 'clik' is no rate of one step.* Did you mean 'click'"),
        ({"rates": {"conversion": 0.1}}, r"data\.rates: 'conversion' is no rate of one step"),
        ({"rates": {"click": 1.0}}, r"data\.rates\.click: 1\.0 is not a number > 0 and < 1"),
        ({"chain": "a -> b else c", "rates": {"c": 0.5}}, r"data\.rates: 'c' is no rate of one step"),
        (
            {"chain": "a -> b | c else d", "click_rate": 0.5},
            r"data\.rates: those of a -> b \| c else d sum to 1, and none",
        ),
    ],
)
def test_a_chain_or_a_rate_that_makes_no_world_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Simulator(10, "train", **options)


# --- traits of one stage in the next

LONG: dict[str, Any] = {"chain": "impression -> click -> cart -> buy", "click_rate": 0.3, "conversion_rate": 0.3}


def test_without_transfer_the_rows_are_what_they_were_before_there_was_one() -> None:
    reader = Simulator(2000, "test", users=40, items=30)
    table, found = read(reader), hashlib.sha256()
    for name in table.column_names:
        found.update(repr((name, table[name].to_pylist())).encode())
    assert found.hexdigest()[:16] == "acd31375e2c307b2"


@pytest.mark.parametrize("transfer", [0.0, 0.5, 1.0])
def test_the_stages_before_give_a_share_of_the_traits_and_rates_stay_as_asked_for(transfer: float) -> None:
    options = {**LONG, "transfer": transfer, "group_share": 0.0}
    found, rows = world.World(world.Knobs(**options)), simulate(**options)
    for n in (1, 2):
        before, own = found.users.vectors[n - 1].ravel(), found.users.vectors[n].ravel()
        assert np.corrcoef(before, own)[0, 1] == pytest.approx(np.sqrt(transfer), abs=0.05)
        items = found.items.vectors
        assert np.linalg.norm(items[n]) == pytest.approx(np.linalg.norm(items[n - 1]), rel=0.05)
    for stage, parent in (("click", None), ("cart", "click"), ("buy", "cart")):
        reached = rows[f"true_{parent}"] if parent else np.ones(ROWS)
        assert (rows[f"true_{stage}"]).sum() / reached.sum() == pytest.approx(0.3, rel=0.02)


def test_with_all_traits_transferred_users_are_the_same_at_every_stage_and_items_are_turned() -> None:
    found = world.World(world.Knobs(**LONG, transfer=1.0))
    users, items = found.users.vectors, found.items.vectors
    assert np.array_equal(users[0], users[1])
    assert np.array_equal(users[1], users[2])
    for n in (1, 2):
        assert np.allclose(items[n] @ items[n].T, items[n - 1] @ items[n - 1].T)
        turn = np.linalg.lstsq(items[n - 1], items[n], rcond=None)[0]
        assert np.allclose(turn @ turn.T, np.eye(4))
        assert np.trace(turn) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("transfer", [0.0, 0.5, 1.0])
def test_a_wish_is_new_although_the_traits_are_known(transfer: float) -> None:
    rows = simulate(rho=0.0, transfer=transfer, group_share=0.0)
    click, convert = (np.log(p / (1 - p)) for p in (rows["true_click"], rows["true_conversion_given_click"]))
    assert np.corrcoef(click, convert)[0, 1] == pytest.approx(0.0, abs=0.02)
    found = world.World(world.Knobs(transfer=transfer, group_share=0.0))
    first, second = (np.einsum("uk,ik->ui", found.users.vectors[n], found.items.vectors[n]).ravel() for n in (0, 1))
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.0, abs=0.05)


@every_funnel
def test_transfer_goes_by_the_chain(options: dict[str, Any]) -> None:
    rows = simulate(20_000, **options, transfer=1.0)
    found = world.World(world.Knobs(**options, transfer=1.0))
    places = {outcome: n for n, (_, outcome) in reversed(list(enumerate(found.outcomes)))}
    for n, (transition, _) in enumerate(found.outcomes):
        if transition.parent in places:
            assert np.array_equal(found.users.vectors[n], found.users.vectors[places[transition.parent]])
    assert all(np.isfinite(column).all() for column in rows.values())
