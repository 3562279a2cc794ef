"""The built-in parts keep the laws that plugins inherit."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from espace.data.reading.readers import Files, arrow, csv, parquet
from espace.data.simulator.simulator import Simulator
from espace.model.features import Features, FeatureSpec, Field
from espace.parts.links.aitm import AITM
from espace.parts.links.none import NoLink
from espace.parts.links.relation import Relation
from espace.parts.loggers.csv import csv as csv_logger
from espace.parts.loggers.tensorboard import tensorboard
from espace.parts.metrics.auc import AUC
from espace.parts.metrics.calibration import Calibration
from espace.parts.metrics.count import Count
from espace.parts.metrics.gauc import GAUC
from espace.parts.metrics.log_loss import LogLoss
from espace.parts.metrics.truth import Truth
from espace.parts.metrics.value import ValueMetric
from espace.parts.objectives.entire_space import EntireSpace
from espace.parts.objectives.ordered import Ordered
from espace.parts.objectives.parent_space import ParentSpace
from espace.parts.optimizers.adagrad import adagrad
from espace.parts.optimizers.adamw import adamw
from espace.parts.optimizers.rmsprop import rmsprop
from espace.parts.optimizers.sgd import sgd
from espace.parts.samplers.negative_downsample import NegativeDownsample
from espace.parts.samplers.none import NoSampler
from espace.parts.samplers.oversample import Oversample
from espace.parts.samplers.rejection import Rejection
from espace.parts.samplers.unclicked_negatives import UnclickedNegatives
from espace.parts.schedules.constant import constant
from espace.parts.schedules.cosine import cosine
from espace.parts.schedules.linear import linear
from espace.parts.schedules.one_cycle import one_cycle
from espace.parts.schedules.plateau import Plateau
from espace.parts.sharing.cgc import CGC
from espace.parts.sharing.mmoe import MMoE
from espace.parts.sharing.ple import PLE
from espace.parts.sharing.separate import Separate
from espace.parts.sharing.shared_bottom import SharedBottom
from espace.parts.stages.binary import Binary
from espace.parts.stages.gamma import Gamma
from espace.parts.stages.lognormal import LogNormal
from espace.parts.stages.normal import Normal
from espace.parts.stages.ziln import ZILN
from espace.parts.towers.mlp import MLP
from espace.parts.weightings.fixed import Fixed
from espace.registry import registry as plugins
from espace.testing import (
    LinkTests,
    LoggerTests,
    MetricTests,
    ObjectiveTests,
    OptimizerTests,
    ReaderTests,
    SamplerTests,
    ScheduleTests,
    SharingTests,
    StageTests,
    TowerTests,
    ValueTests,
    WeightingTests,
)
from espace.testing.chains import CHAINS
from espace.training.adam import adam


class TestAdam(OptimizerTests):
    optimizer = staticmethod(adam)


class TestAdamW(OptimizerTests):
    optimizer = staticmethod(adamw)


class TestAdagrad(OptimizerTests):
    optimizer = staticmethod(adagrad)


class TestRMSprop(OptimizerTests):
    optimizer = staticmethod(rmsprop)
    options = {"momentum": 0.5}


class TestSGD(OptimizerTests):
    optimizer = staticmethod(sgd)
    options = {"momentum": 0.9, "nesterov": True}


class TestConstant(ScheduleTests):
    schedule = staticmethod(constant)
    options = {"warmup_steps": 3}


class TestLinear(ScheduleTests):
    schedule = staticmethod(linear)


class TestCosine(ScheduleTests):
    schedule = staticmethod(cosine)
    options = {"warmup_steps": 1, "final": 0.1}


class TestOneCycle(ScheduleTests):
    schedule = staticmethod(one_cycle)


class TestPlateau(ScheduleTests):
    schedule = Plateau
    options = {"patience": 0}


class TestTensorBoard(LoggerTests):
    logger = staticmethod(tensorboard)


class TestSteps(LoggerTests):
    logger = staticmethod(csv_logger)


class TestMLP(TowerTests):
    tower = MLP
    options = {"hidden_units": [16, 8], "activation": "tanh"}


class TestMLPWithEverything(TowerTests):
    tower = MLP
    options = {"hidden_units": [16, 8], "activation": "prelu", "dropout": 0.1, "norm": "layer"}


class TestMLPWithBatchNorm(TowerTests):
    tower = MLP
    options = {"hidden_units": [16], "activation": "gelu", "norm": "batch"}


class TestSeparate(SharingTests):
    sharing = Separate


class TestSharedBottom(SharingTests):
    sharing = SharedBottom


class TestMMoE(SharingTests):
    sharing = MMoE
    options = {"experts": 3}


class TestMMoEOfOneExpert(SharingTests):
    sharing = MMoE
    options = {"experts": 1}


class TestCGC(SharingTests):
    sharing = CGC
    options = {"own": 2, "shared": 1}


class TestCGCWithoutOwnExperts(SharingTests):
    sharing = CGC
    options = {"own": 0, "shared": 2}


class TestCGCWithoutSharedExperts(SharingTests):
    sharing = CGC
    options = {"own": 1, "shared": 0}


class TestPLE(SharingTests):
    sharing = PLE
    options = {"levels": 3, "own": 1, "shared": 2}


class TestPLEWithoutSharedExperts(SharingTests):
    sharing = PLE
    options = {"levels": 2, "own": 2, "shared": 0}


class TestPLEWithoutOwnExperts(SharingTests):
    sharing = PLE
    options = {"levels": 2, "own": 0, "shared": 2}


class TestNoLink(LinkTests):
    link = NoLink


class TestAITM(LinkTests):
    link = AITM
    options = {"dropout": 0.1}


class TestRelation(LinkTests):
    link = Relation
    options = {"hidden_units": [6, 3], "activation": "tanh"}


class TestRelationSideBySide(LinkTests):
    link = Relation
    options = {"hidden_units": []}


class TestEntireSpace(ObjectiveTests):
    objective = EntireSpace


class TestEntireSpaceOfDetachedParents(ObjectiveTests):
    objective = EntireSpace
    options = {"detach_parents": True}


class TestEntireSpacePerParent(ObjectiveTests):
    objective = EntireSpace
    options = {"detach_parents": True, "divide_by": "parents"}


class TestOrdered(ObjectiveTests):
    objective = Ordered
    options = {"penalty": 2.0}


class TestParentSpace(ObjectiveTests):
    objective = ParentSpace


class TestParentSpacePerImpression(ObjectiveTests):
    objective = ParentSpace
    options = {"divide_by": "impressions"}


class TestNoSampler(SamplerTests):
    sampler = NoSampler


class TestNegativeDownsample(SamplerTests):
    sampler = NegativeDownsample
    options = {"keep": {"click": 0.2}}


class TestNegativeDownsampleOfEveryStage(SamplerTests):
    sampler = NegativeDownsample
    options = {"keep": {"click": 0.3, "cart": 0.5, "wish": 0.6, "buy": 0.4}}
    chains = [CHAINS[1]]


class TestOversample(SamplerTests):
    sampler = Oversample
    options = {"stage": "click", "factor": 3}


class TestOversampleBehindAMerge(SamplerTests):
    sampler = Oversample
    options = {"stage": "buy", "factor": 5}
    chains = [CHAINS[1]]


class TestUnclickedNegatives(SamplerTests):
    sampler = UnclickedNegatives
    options = {"stage": "conversion", "rate": 0.3}
    chains = [CHAINS[0]]


class TestUnclickedNegativesOfAChoice(SamplerTests):
    sampler = UnclickedNegatives
    options = {"stage": "cart", "rate": 1.0}
    chains = [CHAINS[1]]


class TestRejection(SamplerTests):
    sampler = Rejection
    options = {"run": "runs/ctr", "stage": "conversion", "floor": 0.1}
    chains = [CHAINS[0]]


class TestRejectionOfAChoice(SamplerTests):
    sampler = Rejection
    options = {"run": "runs/ctr", "stage": "wish", "floor": 0.5}
    chains = [CHAINS[1]]


class TestFixed(WeightingTests):
    weighting = Fixed


class TestAUC(MetricTests):
    metric = AUC
    options = {"max_rows": 500, "bins": 100}


class TestLogLoss(MetricTests):
    metric = LogLoss


class TestCalibration(MetricTests):
    metric = Calibration
    options = {"points": 7, "max_rows": 500, "bins": 100}


class TestCount(MetricTests):
    metric = Count
    counts = ("rows", "positives")


class TestValueMetric(MetricTests):
    metric = ValueMetric
    options = {"max_rows": 500, "bins": 60}
    counts = ("rows",)


class TestGAUC(MetricTests):
    metric = GAUC
    options = {"by": "user", "max_rows": 500}
    counts = ("gauc_groups",)


class TestTruth(MetricTests):
    metric = Truth
    options = {"column": "true", "name": "do", "max_rows": 500}


def table(rows):
    columns = {"user": range(rows), "city": ["x", None] * (rows // 2), "price": [n / 3 for n in range(rows)]}
    return pa.table({name: list(values) for name, values in columns.items()})


class TestFiles(ReaderTests):
    reader = Files

    def source(self, folder, rows):
        pa.csv.write_csv(table(rows), folder / "a.csv")
        pa.parquet.write_table(table(rows), folder / "b.parquet", row_group_size=60)
        return str(folder)


class TestParquet(ReaderTests):
    reader = parquet

    def source(self, folder, rows):
        pa.parquet.write_table(table(rows), folder / "rows", row_group_size=60)
        return str(folder / "rows")


class TestCSV(ReaderTests):
    reader = csv
    options = {"delimiter": ",", "column_types": {"user": "int32"}}

    def source(self, folder, rows):
        pa.csv.write_csv(table(rows), folder / "rows")
        return str(folder / "rows")


class TestArrow(ReaderTests):
    reader = arrow

    def source(self, folder, rows):
        with pa.ipc.new_file(folder / "rows", table(rows).schema) as file:
            file.write_table(table(rows), max_chunksize=60)
        return str(folder / "rows")


class TestSimulator(ReaderTests):
    reader = Simulator
    options = {"users": 20, "items": 30, "piece_rows": 64}

    def source(self, folder, rows):
        return rows


class TestBinary(StageTests):
    stage = Binary


class TestLogNormal(ValueTests):
    stage = LogNormal


class TestLogNormalWithAWideFloor(ValueTests):
    stage = LogNormal
    options = {"least_sigma": 0.5}


class TestZILN(ValueTests):
    stage = ZILN
    atoms = (0.0,)


class TestGamma(ValueTests):
    stage = Gamma


class TestNormal(ValueTests):
    stage = Normal
    options = {"least_deviation": 0.1}


def test_every_built_in_part_keeps_the_laws_of_its_kind():
    kinds = plugins.KINDS
    tests = [value for name, value in globals().items() if name.startswith("Test")]
    tried = {getattr(test, kind.removesuffix("s"), None) for test in tests for kind in kinds}
    parts = [entry for kind in kinds for entry in plugins.load().entries(kind) if entry.package == "espace"]
    assert not [f"{part.kind}: {part.name}" for part in parts if part.factory not in tried]


def test_the_mlp_is_the_paper_s_by_default():
    spec = FeatureSpec((Field("x", "vector", 20 * 18),), {})
    widths = [p.shape for p in MLP(spec).parameters() if p.dim() == 2]
    assert widths == [(360, 360), (200, 360), (80, 200)]


def test_the_mlp_equals_its_formula_in_float64():
    spec = FeatureSpec((Field("x", "vector", 5),), {})
    tower = MLP(spec, hidden_units=[4, 3]).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    (w1, b1), (w2, b2) = [(layer.weight, layer.bias) for layer in tower.layers if hasattr(layer, "weight")]
    expected = torch.relu(torch.relu(x @ w1.T + b1) @ w2.T + b2)
    assert torch.allclose(tower(Features.of_vector(x)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["flat", "fields"])
def test_fields_are_slices_of_the_flat_vector(name):
    spec = FeatureSpec((Field("a", "id", 2), Field("b", "number", 3)), {})
    flat = torch.arange(10.0).view(2, 5)
    features = Features(spec, flat)
    assert torch.equal(torch.cat([features.field("a"), features.field("b")], dim=1), features.flat())
