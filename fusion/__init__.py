"""Model fusion as mathematics: tensors in, tensors out.

Axes everywhere: T tasks (experts), B batch, C classes, G groups of tensors that share a
coefficient, D embedding width.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # types for mypy and editors; at run time names load on first use, see below
    from fusion.analysis.significance import holm as holm
    from fusion.analysis.significance import mcnemar as mcnemar
    from fusion.analysis.significance import mean_interval as mean_interval
    from fusion.analysis.significance import wilson as wilson
    from fusion.errors import InputError as InputError
    from fusion.logits.cosine_head import zero_shot_head as zero_shot_head
    from fusion.merge_models import merge as merge
    from fusion.merged_layers.functional import merged_linear as merged_linear
    from fusion.methods.classifiers.ensemble import ensemble as ensemble
    from fusion.methods.classifiers.fit_adapters import cafo as cafo
    from fusion.methods.classifiers.fit_adapters import clip_adapter as clip_adapter
    from fusion.methods.classifiers.fit_adapters import tip_adapter as tip_adapter
    from fusion.methods.classifiers.fit_adapters import tip_adapter_f as tip_adapter_f
    from fusion.methods.classifiers.fit_heads import greedy_ensemble as greedy_ensemble
    from fusion.methods.classifiers.fit_heads import linear_probe as linear_probe
    from fusion.methods.classifiers.fit_heads import wise_ft_linear as wise_ft_linear
    from fusion.methods.classifiers.surgery import surgery as surgery
    from fusion.methods.geodesic.karcher import karcher as karcher
    from fusion.methods.geodesic.multislerp import multislerp as multislerp
    from fusion.methods.geodesic.nuslerp import nuslerp as nuslerp
    from fusion.methods.geodesic.slerp import slerp as slerp
    from fusion.methods.learned.adamerging import adamerging as adamerging
    from fusion.methods.learned.concrete import concrete_adamerging as concrete_adamerging
    from fusion.methods.learned.concrete import concrete_task_arithmetic as concrete_task_arithmetic
    from fusion.methods.learned.dawe import dawe as dawe
    from fusion.methods.learned.frank_wolfe import frank_wolfe as frank_wolfe
    from fusion.methods.learned.gate import Gate as Gate
    from fusion.methods.learned.learned_soup import learned_soup as learned_soup
    from fusion.methods.learned.wemoe import ewemoe as ewemoe
    from fusion.methods.learned.wemoe import wemoe as wemoe
    from fusion.methods.routed.dawin import dawin as dawin
    from fusion.methods.soups.selection import best_single as best_single
    from fusion.methods.soups.selection import greedy_soup as greedy_soup
    from fusion.methods.soups.selection import oracle_single as oracle_single
    from fusion.methods.soups.uniform_soup import uniform_soup as uniform_soup
    from fusion.methods.sparse.arcee_fusion import arcee_fusion as arcee_fusion
    from fusion.methods.sparse.breadcrumbs import breadcrumbs as breadcrumbs
    from fusion.methods.sparse.breadcrumbs import breadcrumbs_ties as breadcrumbs_ties
    from fusion.methods.sparse.dare import dare as dare
    from fusion.methods.sparse.della import della as della
    from fusion.methods.sparse.della import della_linear as della_linear
    from fusion.methods.sparse.emr import emr as emr
    from fusion.methods.sparse.magmax import magmax as magmax
    from fusion.methods.sparse.ram import ram as ram
    from fusion.methods.sparse.sce import sce as sce
    from fusion.methods.sparse.tall_mask import consensus as consensus
    from fusion.methods.sparse.tall_mask import tall_mask as tall_mask
    from fusion.methods.sparse.ties import ties as ties
    from fusion.methods.sparse.trust_region import trust_region as trust_region
    from fusion.methods.spectral.doge import doge_ta as doge_ta
    from fusion.methods.spectral.iso import iso_c as iso_c
    from fusion.methods.spectral.iso import iso_cts as iso_cts
    from fusion.methods.spectral.optmerge import optmerge as optmerge
    from fusion.methods.spectral.shared_spaces import core_space as core_space
    from fusion.methods.spectral.shared_spaces import knots as knots
    from fusion.methods.spectral.svc import svc as svc
    from fusion.methods.spectral.tsv import tsv_m as tsv_m
    from fusion.methods.spectral.wudi import wudi as wudi
    from fusion.methods.static.average import simple_average as simple_average
    from fusion.methods.static.average import weighted_average as weighted_average
    from fusion.methods.static.average import wise_ft as wise_ft
    from fusion.methods.static.model_stock import model_stock as model_stock
    from fusion.methods.static.nearswap import nearswap as nearswap
    from fusion.methods.static.task_arithmetic import task_arithmetic as task_arithmetic
    from fusion.methods.statistics.fisher import fisher as fisher
    from fusion.methods.statistics.lot import lot as lot
    from fusion.methods.statistics.regmean import regmean as regmean
    from fusion.methods.statistics.regmean import regmean_plusplus as regmean_plusplus
    from fusion.registry import METHODS as METHODS
    from fusion.registry import Adaptive as Adaptive
    from fusion.registry import Gated as Gated
    from fusion.registry import InModel as InModel
    from fusion.registry import Learned as Learned
    from fusion.registry import LogitSpace as LogitSpace
    from fusion.registry import Method as Method
    from fusion.registry import Routed as Routed
    from fusion.registry import Selected as Selected
    from fusion.registry import Static as Static
    from fusion.task_vectors.coding import Coding as Coding
    from fusion.task_vectors.coding import mix as mix
    from fusion.task_vectors.coding import one_hot as one_hot
    from fusion.task_vectors.low_rank import LowRank as LowRank
    from fusion.task_vectors.sharded_reduce import Survey as Survey
    from fusion.task_vectors.sharded_reduce import run_surveys as run_surveys
    from fusion.task_vectors.task_vectors import Deltas as Deltas
    from fusion.task_vectors.task_vectors import StateDict as StateDict
    from fusion.task_vectors.task_vectors import TaskVectors as TaskVectors

EXPORTS = {
    "holm": "fusion.analysis.significance",
    "mcnemar": "fusion.analysis.significance",
    "mean_interval": "fusion.analysis.significance",
    "wilson": "fusion.analysis.significance",
    "InputError": "fusion.errors",
    "zero_shot_head": "fusion.logits.cosine_head",
    "merge": "fusion.merge_models",
    "merged_linear": "fusion.merged_layers.functional",
    "Gate": "fusion.methods.learned.gate",
    "Adaptive": "fusion.registry",
    "Gated": "fusion.registry",
    "Learned": "fusion.registry",
    "LogitSpace": "fusion.registry",
    "METHODS": "fusion.registry",
    "Method": "fusion.registry",
    "InModel": "fusion.registry",
    "Routed": "fusion.registry",
    "Selected": "fusion.registry",
    "Static": "fusion.registry",
    "Coding": "fusion.task_vectors.coding",
    "mix": "fusion.task_vectors.coding",
    "one_hot": "fusion.task_vectors.coding",
    "LowRank": "fusion.task_vectors.low_rank",
    "Survey": "fusion.task_vectors.sharded_reduce",
    "run_surveys": "fusion.task_vectors.sharded_reduce",
    "Deltas": "fusion.task_vectors.task_vectors",
    "StateDict": "fusion.task_vectors.task_vectors",
    "TaskVectors": "fusion.task_vectors.task_vectors",
}
"""Public name -> the module that defines it; the methods are in `METHOD_MODULES`."""

METHOD_MODULES = {
    "ensemble": "fusion.methods.classifiers.ensemble",
    "cafo": "fusion.methods.classifiers.fit_adapters",
    "clip_adapter": "fusion.methods.classifiers.fit_adapters",
    "tip_adapter": "fusion.methods.classifiers.fit_adapters",
    "tip_adapter_f": "fusion.methods.classifiers.fit_adapters",
    "greedy_ensemble": "fusion.methods.classifiers.fit_heads",
    "linear_probe": "fusion.methods.classifiers.fit_heads",
    "wise_ft_linear": "fusion.methods.classifiers.fit_heads",
    "adamerging": "fusion.methods.learned.adamerging",
    "concrete_adamerging": "fusion.methods.learned.concrete",
    "concrete_task_arithmetic": "fusion.methods.learned.concrete",
    "dawe": "fusion.methods.learned.dawe",
    "frank_wolfe": "fusion.methods.learned.frank_wolfe",
    "surgery": "fusion.methods.classifiers.surgery",
    "learned_soup": "fusion.methods.learned.learned_soup",
    "ewemoe": "fusion.methods.learned.wemoe",
    "wemoe": "fusion.methods.learned.wemoe",
    "dawin": "fusion.methods.routed.dawin",
    "best_single": "fusion.methods.soups.selection",
    "greedy_soup": "fusion.methods.soups.selection",
    "oracle_single": "fusion.methods.soups.selection",
    "uniform_soup": "fusion.methods.soups.uniform_soup",
    "iso_c": "fusion.methods.spectral.iso",
    "iso_cts": "fusion.methods.spectral.iso",
    "doge_ta": "fusion.methods.spectral.doge",
    "optmerge": "fusion.methods.spectral.optmerge",
    "trust_region": "fusion.methods.sparse.trust_region",
    "core_space": "fusion.methods.spectral.shared_spaces",
    "knots": "fusion.methods.spectral.shared_spaces",
    "svc": "fusion.methods.spectral.svc",
    "tsv_m": "fusion.methods.spectral.tsv",
    "wudi": "fusion.methods.spectral.wudi",
    "simple_average": "fusion.methods.static.average",
    "weighted_average": "fusion.methods.static.average",
    "wise_ft": "fusion.methods.static.average",
    "arcee_fusion": "fusion.methods.sparse.arcee_fusion",
    "breadcrumbs": "fusion.methods.sparse.breadcrumbs",
    "breadcrumbs_ties": "fusion.methods.sparse.breadcrumbs",
    "dare": "fusion.methods.sparse.dare",
    "della": "fusion.methods.sparse.della",
    "della_linear": "fusion.methods.sparse.della",
    "emr": "fusion.methods.sparse.emr",
    "magmax": "fusion.methods.sparse.magmax",
    "model_stock": "fusion.methods.static.model_stock",
    "karcher": "fusion.methods.geodesic.karcher",
    "multislerp": "fusion.methods.geodesic.multislerp",
    "nearswap": "fusion.methods.static.nearswap",
    "nuslerp": "fusion.methods.geodesic.nuslerp",
    "slerp": "fusion.methods.geodesic.slerp",
    "ram": "fusion.methods.sparse.ram",
    "sce": "fusion.methods.sparse.sce",
    "consensus": "fusion.methods.sparse.tall_mask",
    "tall_mask": "fusion.methods.sparse.tall_mask",
    "task_arithmetic": "fusion.methods.static.task_arithmetic",
    "ties": "fusion.methods.sparse.ties",
    "fisher": "fusion.methods.statistics.fisher",
    "lot": "fusion.methods.statistics.lot",
    "regmean": "fusion.methods.statistics.regmean",
    "regmean_plusplus": "fusion.methods.statistics.regmean",
}
"""Method -> the module that defines its rule. `fusion.<method>` is the rule, which first checks its
hyper-parameters as sweep files do (`fusion.merge_models.checked_rule`)."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import fusion.errors` does not import torch.

    Raises:
        AttributeError: `fusion` has no such name.
    """
    if name in METHOD_MODULES:
        found = importlib.import_module("fusion.merge_models").checked_rule(name)
    elif name in EXPORTS:
        found = getattr(importlib.import_module(EXPORTS[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, and what is loaded already."""
    return sorted({*globals(), *EXPORTS, *METHOD_MODULES})
