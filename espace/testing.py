"""The laws that every part keeps, as test classes to inherit. A plugin's whole test can be

    class TestCross(TowerTests):
        tower = Cross
        options = {"layers": 3}

Each test's failure says in one sentence which law was broken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from espace.batch import Labels, Ragged
from espace.chain import Chain
from espace.features import Features, FeatureSpec, Field
from espace.probability import Probabilities

CHAINS = (
    ["impression -> click -> conversion"],
    ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"],
)


def example_spec() -> FeatureSpec:
    """Three ids of width 4, a pooled bag, a pooled history, a number and a vector."""
    fields = [Field(name, "id", 4) for name in ("user", "item", "context")]
    fields += [
        Field("tags", "bag", 4),
        Field("history", "sequence", 4),
        Field("age", "number", 2),
        Field("text", "vector", 3),
    ]
    return FeatureSpec(tuple(fields), {"history": 4})


def example_features(spec: FeatureSpec, rows: int = 6, seed: int = 0) -> Features:
    """Random features of that layout in float64; row 0 has an empty history."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(rows, spec.width, generator=generator, dtype=torch.float64)
    lengths = torch.arange(rows) % 4
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    histories = {}
    for name, width in spec.sequences.items():
        values = torch.randn(int(offsets[-1]), width, generator=generator, dtype=torch.float64)
        histories[name] = _always(Ragged(values, offsets))
    return Features(spec, flat, histories)


def _always(ragged: Ragged) -> Callable[[], Ragged]:
    return lambda: ragged


def rows_of(features: Features, rows: Tensor) -> Features:
    """Some of the rows, in that order."""
    histories = {name: _always(features.ragged(name).take(rows)) for name in features.spec.sequences}
    return Features(features.spec, features.flat()[rows], histories)


class TowerTests:
    """Laws of a tower. Set `tower` to the class and `options` to what the YAML would say."""

    tower: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, Any]] = {}
    spec: ClassVar[FeatureSpec] = example_spec()

    def build(self, spec: FeatureSpec | None = None) -> Any:
        """The tower in float64, from a fixed seed."""
        torch.manual_seed(1)
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
        assert tower.out_features > 1 or not inside, "a tower gives what a head turns into logits, not a probability"

    def test_every_parameter_learns(self) -> None:
        tower = self.build()
        tower(example_features(self.spec, 64)).square().sum().backward()
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
        tower, other = self.build(), self.build()
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        other.load_state_dict(copy.deepcopy(tower.state_dict()))
        features = example_features(self.spec)
        same = torch.equal(tower.eval()(features), other.eval()(features))
        assert same, "everything that an output depends on is a parameter or a buffer, so that it is saved"

    def test_works_as_an_expert(self) -> None:
        first, second = self.build(), self.build()
        features = example_features(self.spec)
        assert torch.equal(first.eval()(features), second.eval()(features)), (
            "a factory called twice gives equal experts"
        )
        assert first is not second, "a factory gives a new tower each time"
        shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
        assert not shared, "two towers of one class share no parameter"

    def test_an_empty_batch_of_histories_works(self) -> None:
        tower = self.build().eval()
        features = rows_of(example_features(self.spec), torch.tensor([0, 4]))  # both without events
        assert torch.isfinite(tower(features)).all(), "an empty history gives finite numbers"


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
