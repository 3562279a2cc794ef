"""The laws that every part keeps, as test classes to inherit. A plugin's whole test can be

    class TestCross(TowerTests):
        tower = Cross
        options = {"layers": 3}

Each test's failure says in one sentence which law was broken.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espace.batch import Labels, Ragged
from espace.chain import Chain
from espace.features import ExtraTable, Features, FeatureSpec, Field
from espace.probability import Probabilities

CHAINS = (
    ["impression -> click -> conversion"],
    ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"],
)


_LENGTHS = {"history": (0, 4), "history_time": (0, 4), "carts": (2, 3)}  # row i has (first + i) % cycle events


def example_spec() -> FeatureSpec:
    """Ids of two widths, a pooled bag, numbers and a vector; `history`, pooled, with `history_time` aligned to it event by
    event; `carts`, which is not pooled. `history` and `carts` share the table of `item`."""
    fields = [Field(name, "id", 4) for name in ("user", "item", "context")]
    fields += [
        Field("city", "id", 6),
        Field("tags", "bag", 4),
        Field("history", "sequence", 4),
        Field("history_time", "sequence", 0),
        Field("carts", "sequence", 0),
        Field("age", "number", 2),
        Field("price", "number", 2),
        Field("text", "vector", 3),
    ]
    return FeatureSpec(
        tuple(fields), {"history": 4, "history_time": 2, "carts": 4}, {"history": "item", "carts": "item"}
    )


def example_features(spec: FeatureSpec, rows: int = 6, seed: int = 0, *, empty: bool = False) -> Features:
    """Random features of that layout in float64; row 0 has an empty history, and every row if `empty`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    flat = normal(rows, spec.width)
    histories = {}
    for name, width in spec.sequences.items():
        first, cycle = _LENGTHS.get(name, (0, 4))
        lengths = (first + torch.arange(rows)) % cycle * (not empty)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        histories[name] = _always(Ragged(normal(int(offsets[-1]), width), offsets))
    return Features(spec, flat, histories, normal(rows, len(spec.categorical), spec.extra_width))


def _always(ragged: Ragged) -> Callable[[], Ragged]:
    return lambda: ragged


def rows_of(features: Features, rows: Tensor) -> Features:
    """Some of the rows, in that order."""
    spec = features.spec
    histories = {name: _always(features.ragged(name).take(rows)) for name in spec.sequences}
    extra = features.extra(ExtraTable(0, spec.extra_width))
    return Features(spec, features.flat()[rows], histories, extra[rows])


def as_float(features: Features) -> Features:
    """The same in float32."""
    histories = {name: features.ragged(name) for name in features.spec.sequences}
    narrow = {name: _always(Ragged(r.values.float(), r.offsets)) for name, r in histories.items()}
    extra = features.extra(ExtraTable(0, features.spec.extra_width)).float()
    return Features(features.spec, features.flat().float(), narrow, extra)


class TowerTests:
    """Laws of a tower. Set `tower` to the class and `options` to what the YAML would say; `spec` to other features if the
    tower needs them."""

    tower: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, Any]] = {}
    spec: FeatureSpec = example_spec()

    def setup_method(self) -> None:
        """Every test has a spec of its own, of which its towers may ask for tables."""
        self.spec = replace(type(self).spec)

    def build(self, spec: FeatureSpec | None = None, seed: int = 1) -> Any:
        """The tower in float64, from a fixed seed."""
        torch.manual_seed(seed)
        return type(self).tower(spec or self.spec, **self.options).double()

    def test_gives_one_vector_per_row(self) -> None:
        tower = self.build()
        out = tower(example_features(self.spec))
        assert isinstance(tower.out_features, int), "a tower says how wide its output is: set self.out_features"
        assert out.shape == (6, tower.out_features), f"a tower gives (batch, out_features), not {tuple(out.shape)}"

    def test_gives_vectors_and_not_probabilities(self) -> None:
        tower = self.build()
        out = torch.cat([tower(example_features(self.spec, 64, seed)) for seed in range(4)])
        inside = ((out >= 0) & (out <= 1)).all() and out.std() > 0
        shares = inside and torch.allclose(out.sum(1), out.new_ones(len(out)))
        is_probability = shares or (tower.out_features == 1 and inside)
        assert not is_probability, "a tower gives what a head turns into logits, not a probability"

    def test_every_parameter_learns(self) -> None:
        tower = self.build()
        torch.autograd.backward(_loss_of(tower, example_features(self.spec, 64)))
        dead = [n for n, p in tower.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_rows_do_not_see_each_other(self) -> None:
        tower = self.build().eval()
        features = example_features(self.spec)
        order = torch.tensor([3, 1])
        alone = tower(rows_of(features, order))
        assert torch.allclose(alone, tower(features)[order]), "in eval mode a row's vector depends on that row only"

    def test_what_stands_in_the_padding_is_invisible(self) -> None:
        tower = self.build().eval()
        features = example_features(self.spec)
        short = torch.tensor([0, 1])  # alone they are padded less than beside longer rows
        assert torch.allclose(tower(rows_of(features, short)), tower(features)[short]), "padding changes no output"

    def test_is_deterministic_in_eval_mode(self) -> None:
        tower = self.build().eval()
        features = example_features(self.spec)
        assert torch.equal(tower(features), tower(features)), "in eval mode the same input gives the same bits"

    def test_saves_and_loads_to_the_same_bits(self) -> None:
        specs = replace(self.spec), replace(self.spec)
        tower, other = self.build(specs[0], seed=1), self.build(specs[1], seed=2)
        file = io.BytesIO()
        torch.save(tower.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        outputs = [t.eval()(example_features(spec)) for t, spec in zip((tower, other), specs, strict=True)]
        same = torch.equal(*outputs)
        assert same, "everything that an output depends on is a parameter or a buffer, so that it is saved"

    def test_two_towers_share_no_parameter(self) -> None:
        first, second = self.build(), self.build()
        assert first is not second, "the factory gives a new tower each time"
        shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
        assert not shared, "two towers of one class share no parameter"

    def test_a_batch_without_any_event_works(self) -> None:
        tower = self.build()
        features = example_features(self.spec, empty=True)
        assert torch.isfinite(tower.eval()(features)).all(), "an empty history gives finite numbers"
        loss = _loss_of(tower.train(), features)
        assert torch.isfinite(loss), "an empty history gives finite numbers"
        torch.autograd.backward(loss)
        without = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, (
            f"every parameter gets a gradient in every batch, if only zeros, so that ranks do not wait for each other; these"
            f" do not: {', '.join(without)}"
        )

    def test_works_under_any_chain(self) -> None:
        for lines in CHAINS:
            chain, spec = Chain.parse(lines), replace(self.spec)
            towers = {t.name: self.build(spec) for t in chain.transitions}
            features = example_features(spec)
            heads = {
                t.name: nn.Linear(towers[t.name].out_features, len(t.outcomes)).double() for t in chain.transitions
            }
            p = Probabilities(chain, {n: heads[n](towers[n](features)) for n in towers})
            last = chain.stages[-1]
            both = p.log_prob(last).exp() + p.log_not_prob(last).exp()
            assert torch.allclose(both, torch.ones_like(both)), "its vectors give probabilities under any chain"

    def test_works_as_an_expert(self) -> None:
        torch.manual_seed(3)
        experts = nn.ModuleList(self.build(seed=seed) for seed in (1, 2))
        features = example_features(self.spec, 64)
        gate = torch.randn(64, 2, dtype=torch.float64).softmax(1)  # (batch, experts)
        mixed = (gate[..., None] * torch.stack([e(features) for e in experts], dim=1)).sum(1)
        torch.autograd.backward(mixed.square().sum())
        dead = [n for n, p in experts.named_parameters() if p.requires_grad and p.grad is None]
        assert not dead, f"as one of several experts every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_half_precision_changes_little(self) -> None:
        tower, features = self.build().float().eval(), as_float(example_features(self.spec))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = tower(features).float()
        full = tower(features)
        close = (half - full).norm() <= 0.05 * full.norm() + 1e-3
        assert close, "under bf16 autocast the output stays within 5 % of what it is in float32"


def _loss_of(tower: Any, features: Features) -> Tensor:
    """Something that depends on all of the output, and on what the tower adds to the loss."""
    out: Tensor = tower(features)
    return out.square().sum() + getattr(tower, "auxiliary_loss", 0.0)


class SharingTests:
    """Laws of a sharing module. Set `sharing` and `options`."""

    sharing: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, Any]] = {}

    def build(self) -> Any:
        """The module for two transitions, experts being one linear layer, in float64."""
        torch.manual_seed(1)
        return type(self).sharing(example_spec(), ["a", "b"], _LinearTower, **self.options).double()

    def test_every_transition_gets_features_of_the_promised_layout(self) -> None:
        module = self.build()
        out = module(example_features(example_spec()))
        assert set(out) == {"a", "b"} == set(module.specs), "there are features and a layout for every transition"
        for name, features in out.items():
            assert features.flat().shape == (6, module.specs[name].width), "the features are as wide as specs says"

    def test_every_parameter_learns(self) -> None:
        module = self.build()
        out = module(example_features(example_spec(), 64))
        total = torch.stack([f.flat().square().sum() * (i + 1) for i, f in enumerate(out.values())]).sum()
        if total.requires_grad:
            torch.autograd.backward(total)
        dead = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"


class LinkTests:
    """Laws of a link. Set `link` and `options`."""

    link: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, Any]] = {}

    def test_every_transition_gets_a_vector_of_the_promised_width(self) -> None:
        for lines in CHAINS:
            chain = Chain.parse(lines)
            widths = {t.name: 5 for t in chain.transitions}
            link: Any = type(self).link(chain, widths, **self.options).double()
            out = link({name: torch.randn(4, 5, dtype=torch.float64) for name in widths})
            assert set(out) == set(widths), "there is a vector for every transition"
            assert all(out[n].shape == (4, link.widths[n]) for n in widths), "the vectors are as wide as widths says"


class ObjectiveTests:
    """Laws of an objective. Set `objective` and `options`."""

    objective: ClassVar[Callable[..., Any]]
    options: ClassVar[Mapping[str, Any]] = {}

    def test_terms_are_described_and_given_per_row(self) -> None:
        for chain, p, labels, _ in _judged():
            objective = type(self).objective(chain, **self.options)
            found = objective(p, labels)
            assert set(found) == set(objective.terms), "every term is described in .terms"
            assert all(v.shape == r.shape == (64,) for v, r in found.values()), "a term is a value and a count per row"

    def test_losses_are_finite_and_not_negative(self) -> None:
        for chain, p, labels, _ in _judged():
            for value, rows in type(self).objective(chain, **self.options)(p, labels).values():
                assert torch.isfinite(value).all(), "a loss is finite"
                assert (value >= 0).all(), "a cross-entropy is not negative"
                assert ((rows >= 0) & (rows <= 1)).all(), "a row counts at most once"

    def test_every_logit_gets_a_finite_gradient_even_without_clicks(self) -> None:
        for chain, p, labels, logits in _judged():
            empty = Labels(chain, torch.zeros_like(labels.values))
            for some in (labels, empty):
                found = type(self).objective(chain, **self.options)(p, some)
                total = torch.stack([value.sum() for value, _ in found.values()]).sum()
                grads = torch.autograd.grad(total, list(logits.values()), allow_unused=True, retain_graph=True)
                assert all(g is not None for g in grads), "mask by multiplication, so that every tower gets a gradient"
                assert all(torch.isfinite(g).all() for g in grads if g is not None), "gradients are finite"

    def test_unknown_labels_are_left_out_where_they_are_needed(self) -> None:
        for chain, p, labels, _ in _judged():
            unknown = Labels(chain, torch.full_like(labels.values, -1))
            for value, _ in type(self).objective(chain, **self.options)(p, unknown).values():
                assert not value.any(), "a row whose labels are not known adds nothing"


class _LinearTower(nn.Module):
    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.width, 3)
        self.out_features = 3

    def forward(self, features: Features) -> Tensor:
        out: Tensor = self.layer(features.flat())
        return out


def _judged() -> list[tuple[Chain, Probabilities, Labels, dict[str, Tensor]]]:
    """Every example chain with random logits and labels that follow it."""
    found = []
    for lines in CHAINS:
        chain = Chain.parse(lines)
        torch.manual_seed(2)
        logits = {t.name: torch.randn(64, len(t.outcomes), dtype=torch.float64) for t in chain.transitions}
        leaves = {n: z.requires_grad_() for n, z in logits.items()}
        found.append((chain, Probabilities(chain, leaves), random_labels(chain, 64), leaves))
    return found


def random_labels(chain: Chain, rows: int) -> Labels:
    """Labels drawn down the chain, every class of a transition being equally likely."""
    happened = {chain.root: torch.ones(rows, dtype=torch.bool)}
    for stage in chain.stages[1:]:
        happened[stage] = torch.zeros(rows, dtype=torch.bool)
    for transition in chain.transitions:
        drawn = torch.randint(len(transition.classes), (rows,))
        for number, outcome in enumerate(transition.classes):
            if outcome is not None:
                happened[outcome] |= happened[transition.parent] & (drawn == number)
    return Labels(chain, torch.stack([happened[s] for s in chain.stages[1:]], dim=1).to(torch.int8))
