"""The objectives against their formulas, with nulls."""

import pytest
import torch

from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.data.batch import Batch
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.parent_space import ParentSpace
from espace.testing import random_labels
from espace.testing.chains import CHAINS
from espace.training.judging import Terms

ESMM = Chain.parse(["impression -> click -> conversion"])
FUNNEL = Chain.parse(["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy"])


def draw(chain, rows=200, seed=0):
    torch.manual_seed(seed)
    logits = {t.name: torch.randn(rows, len(t.outcomes), dtype=torch.float64) for t in chain.transitions}
    return Probabilities(chain, logits), random_labels(chain, rows)


def batch_of(labels, weights=None):
    rows = len(labels.values)
    weights = torch.ones(rows) if weights is None else weights
    return Batch(torch.empty(rows, 0), {}, torch.empty(rows, 0), labels.values, weights, {})


def means(objective, p, labels, weights=None):
    return Terms.of(objective, p, batch_of(labels, weights)).means()


def test_the_entire_space_objective_is_one_cross_entropy_per_labelled_stage_over_all_rows():
    for chain in (ESMM, FUNNEL):
        p, labels = draw(chain)
        found = means(EntireSpace(chain), p, labels)
        assert list(found) == list(chain.labelled)
        for stage in chain.labelled:
            y = labels.of(stage).double()
            expected = torch.nn.functional.binary_cross_entropy(p.prob(stage), y)
            assert float(found[stage]) == pytest.approx(float(expected), rel=1e-12)


def test_the_parent_space_objective_judges_each_transition_where_its_parent_happened():
    p, labels = draw(FUNNEL)
    found = means(ParentSpace(FUNNEL), p, labels)
    clicked = labels.of("click") == 1
    log_p = torch.stack([p.log_prob(s, given="click") for s in ("cart", "wish", "browse")], dim=1)
    chosen = torch.stack([labels.of(s) for s in ("cart", "wish", "browse")], dim=1).argmax(1)
    expected = torch.nn.functional.nll_loss(log_p[clicked], chosen[clicked])
    assert float(found["cart_or_wish_given_click"]) == pytest.approx(float(expected), rel=1e-12)


def test_per_impression_the_parent_space_terms_add_up_to_the_likelihood_of_the_path():
    p, labels = draw(FUNNEL)
    found = means(ParentSpace(FUNNEL, divide_by="impressions"), p, labels)
    total = 0.0
    for row in range(200):
        for t in FUNNEL.transitions:
            if labels.of(t.parent)[row] == 1:
                happened = [o for o in t.children if labels.of(o)[row] == 1]
                log_p = p.log_prob(happened[0], given=t.parent) if happened else p.log_nothing(t)
                total -= float(log_p[row])
    assert sum(map(float, found.values())) == pytest.approx(total / 200, rel=1e-12)


def test_an_unknown_label_is_left_out_of_exactly_the_terms_that_need_it():
    p, labels = draw(ESMM)
    unknown = labels.values.clone()
    clicked = unknown[:, 0] == 1
    unknown[clicked, 1] = -1
    found = means(EntireSpace(ESMM), p, Labels(ESMM, unknown))
    assert float(found["click"]) == float(means(EntireSpace(ESMM), p, labels)["click"])
    expected = -p.log_not_prob("conversion")[~clicked].mean()
    assert float(found["conversion"]) == pytest.approx(float(expected), rel=1e-12)


def test_a_term_without_any_row_is_0_and_finite():
    p, labels = draw(ESMM)
    nothing = Labels(ESMM, torch.full_like(labels.values, -1))
    for objective in (EntireSpace(ESMM), ParentSpace(ESMM)):
        assert [float(v) for v in means(objective, p, nothing).values()] == [0.0, 0.0]


def test_a_row_of_weight_2_counts_as_two_rows_and_one_of_weight_0_not_at_all():
    p, labels = draw(ESMM)
    twice = torch.cat([torch.arange(200), torch.arange(50)])
    weights = torch.ones(200)
    weights[:50] = 2
    weights[150:] = 0
    kept = twice[(twice < 150)]
    q = Probabilities(ESMM, {t.name: _logit_of(p, t)[kept] for t in ESMM.transitions})
    for objective in (EntireSpace(ESMM), ParentSpace(ESMM)):
        one = means(objective, p, labels, weights)
        other = means(objective, q, Labels(ESMM, labels.values[kept]))
        assert {n: float(v) for n, v in one.items()} == pytest.approx({n: float(v) for n, v in other.items()}, rel=1e-9)


def _logit_of(p, transition):
    return p.logit(transition.outcomes[0], given=transition.parent)[:, None]


def test_means_do_not_depend_on_how_the_rows_were_divided():
    p, labels = draw(FUNNEL)
    objective = ParentSpace(FUNNEL)
    whole = Terms.of(objective, p, batch_of(labels))
    logits = {
        t.name: torch.stack([p.log_prob(o, given=t.parent) - p.log_nothing(t) for o in t.outcomes], dim=1)
        for t in FUNNEL.transitions
    }
    sums, rows = 0, 0
    for cut in torch.arange(200).split(37):
        part = Terms.of(
            objective,
            Probabilities(FUNNEL, {n: z[cut] for n, z in logits.items()}),
            batch_of(Labels(FUNNEL, labels.values[cut])),
        )
        sums, rows = sums + part.sums, rows + part.rows
    assert torch.allclose(sums / rows, whole.sums / whole.rows, rtol=1e-12)


def test_the_conversion_tower_learns_from_every_impression_in_the_entire_space_only():
    """methods: an un-clicked row pushes pCVR down by p q (1 - q) / (1 - p q) in logit space under ESMM, not at all under BASE."""
    z = {t.name: torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True) for t in ESMM.transitions}
    labels = Labels(ESMM, torch.tensor([[0, 0]], dtype=torch.int8))
    p = torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64))
    for objective, expected in ((EntireSpace(ESMM), p * p * (1 - p) / (1 - p * p)), (ParentSpace(ESMM), 0.0)):
        value = sum(v.sum() for v, _ in objective(Probabilities(ESMM, z), labels).values())
        (gradient,) = torch.autograd.grad(value, z["click_to_conversion"])
        assert float(gradient) == pytest.approx(float(expected), abs=1e-12)


# --- parents that do not learn from their children


def learning(chain, rows=50):
    """Probabilities of a chain without values, and their logits, which want a gradient."""
    torch.manual_seed(3)
    z = {t.name: torch.randn(rows, len(t.outcomes), dtype=torch.float64, requires_grad=True) for t in chain.transitions}
    return Probabilities(chain, z), z


PLAIN = [chain for chain in map(Chain.parse, CHAINS) if not chain.values]


def test_with_detached_parents_losses_are_the_same_and_only_what_leads_to_a_stage_learns_from_its_label():
    for chain in PLAIN:
        p, z = learning(chain)
        labels = random_labels(chain, 50)
        plain, detached = EntireSpace(chain)(p, labels), EntireSpace(chain, detach_parents=True)(p, labels)
        for stage in chain.labelled:
            assert torch.equal(plain[stage][0], detached[stage][0])
            found = torch.autograd.grad(
                detached[stage][0].sum(), list(z.values()), allow_unused=True, retain_graph=True
            )
            learnt = {n for n, g in zip(z, found, strict=True) if g is not None and g.any()}
            assert learnt == {t.name for t in chain.arrivals(stage)}


@pytest.mark.parametrize("options", [{}, {"detach_parents": True}, {"detach_parents": True, "divide_by": "parents"}])
def test_at_the_truth_the_expected_gradient_is_zero_whatever_the_options(options):
    for chain in PLAIN:
        p, z = learning(chain, rows=1)
        total = torch.zeros((), dtype=torch.float64)
        for stage in chain.labelled:
            truth = p.prob(stage).detach()
            for happened, weight in ((1, truth), (0, 1 - truth)):
                values = torch.full((1, len(chain.stages) - 1), -1, dtype=torch.int8)
                values[:, chain.stages.index(stage) - 1] = happened
                loss, rows = EntireSpace(chain, **options)(p, Labels(chain, values))[stage]
                total = total + (weight * loss / rows).sum()
        for found in torch.autograd.grad(total, list(z.values())):
            assert float(found.abs().max()) < 1e-12


def test_the_divisor_is_the_expected_number_of_rows_with_a_parent():
    for chain in PLAIN:
        p, _ = learning(chain)
        labels = random_labels(chain, 50)
        plain, divided = EntireSpace(chain)(p, labels), EntireSpace(chain, divide_by="parents")(p, labels)
        for stage in chain.labelled:
            reached = sum(p.prob(parent) for parent in chain.parents(stage))
            assert torch.equal(plain[stage][0], divided[stage][0])
            assert torch.allclose(divided[stage][1], plain[stage][1] * reached, rtol=1e-12)


def test_detached_and_divided_a_conversion_is_the_term_of_the_parent_space_times_the_share_that_can_be_told():
    """With p = P(u) and q = P(v | u): of rows with v the gradient is that of -log q, of those with u alone it is
    p (1 - q) / (1 - p q) times that of -log(1 - q), and over the labels at x it is (1 - q) / (1 - p q) times that of
    the parent space, whatever the true rate is."""
    p, z = learning(ESMM)
    reached, q = p.prob("click").detach(), p.prob("conversion", given="click").detach()

    def gradient(objective, click, conversion):
        labels = Labels(ESMM, torch.tensor([[click, conversion]] * 50, dtype=torch.int8))
        loss = list(objective(p, labels).values())[1][0].sum()
        return torch.autograd.grad(loss, z["click_to_conversion"], retain_graph=True)[0][:, 0]

    one, base = EntireSpace(ESMM, detach_parents=True, divide_by="parents"), ParentSpace(ESMM)
    assert torch.allclose(gradient(one, 1, 1), gradient(base, 1, 1), rtol=1e-12)
    told = reached * (1 - q) / (1 - reached * q)
    assert torch.allclose(gradient(one, 1, 0), told * gradient(base, 1, 0), rtol=1e-12)
    rate = 0.3  # the true P(v | u), with P(u) as predicted
    cases = {(1, 1): reached * rate, (1, 0): reached * (1 - rate), (0, 0): 1 - reached}
    mine, theirs = (sum(w * gradient(o, *c) for c, w in cases.items()) for o in (one, base))
    assert torch.allclose(mine, theirs * (1 - q) / (1 - reached * q), rtol=1e-10)


def test_a_joint_head_has_no_parent_to_detach_and_what_follows_it_takes_it_as_a_constant():
    chain = Chain.parse(["impression -> click -> cart -> buy"])
    z = {t.name: torch.randn(50, 1, dtype=torch.float64, requires_grad=True) for t in chain.transitions}
    p, labels = Probabilities(chain, z, joint=["cart"]), random_labels(chain, 50)
    plain = EntireSpace(chain)(p, labels)
    found = EntireSpace(chain, detach_parents=True, divide_by="parents")(p, labels)
    for stage in chain.labelled:
        assert torch.equal(plain[stage][0], found[stage][0])
        grads = torch.autograd.grad(found[stage][0].sum(), list(z.values()), allow_unused=True, retain_graph=True)
        learnt = {n for n, g in zip(z, grads, strict=True) if g is not None and g.any()}
        assert learnt == {t.name for t in chain.arrivals(stage)}
    assert torch.allclose(found["buy"][1], plain["buy"][1] * p.prob("cart"), rtol=1e-12)
