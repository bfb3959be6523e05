"""METHODS: the table of all fusion methods. A rule's signature is the schema of its parameters.

Methods of other packages are added when this module is imported (`fusion.outside_methods`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

from fusion import outside_methods
from fusion.errors import InputError
from fusion.kinds import Adapted as Adapted
from fusion.kinds import Adaptive as Adaptive
from fusion.kinds import Composed as Composed
from fusion.kinds import Fitted as Fitted
from fusion.kinds import Gated as Gated
from fusion.kinds import InModel as InModel
from fusion.kinds import Learned as Learned
from fusion.kinds import LogitSpace as LogitSpace
from fusion.kinds import Method as Method
from fusion.kinds import PerTask as PerTask
from fusion.kinds import Routed as Routed
from fusion.kinds import Row as Row
from fusion.kinds import Selected as Selected
from fusion.kinds import Static as Static
from fusion.kinds import StatisticsBased as StatisticsBased
from fusion.methods.classifiers import fit_adapters, fit_heads
from fusion.methods.classifiers.ensemble import ensemble
from fusion.methods.classifiers.surgery import surgery, surgery_logits
from fusion.methods.geodesic.karcher import karcher
from fusion.methods.geodesic.multislerp import multislerp
from fusion.methods.geodesic.nuslerp import nuslerp
from fusion.methods.geodesic.slerp import slerp
from fusion.methods.learned.adamerging import adamerging
from fusion.methods.learned.concrete import (
    concrete_adamerging,
    concrete_task_arithmetic,
    masked_merge,
)
from fusion.methods.learned.dawe import dawe
from fusion.methods.learned.frank_wolfe import frank_wolfe
from fusion.methods.learned.learned_soup import learned_soup
from fusion.methods.learned.wemoe import ewemoe, wemoe
from fusion.methods.routed.dawin import dawin
from fusion.methods.soups.selection import best_single, greedy_soup, oracle_single
from fusion.methods.soups.uniform_soup import soup_survey, uniform_soup
from fusion.methods.sparse.arcee_fusion import arcee_fusion
from fusion.methods.sparse.breadcrumbs import breadcrumbs, breadcrumbs_ties
from fusion.methods.sparse.dare import dare, dare_survey
from fusion.methods.sparse.della import della, della_linear
from fusion.methods.sparse.emr import emr, emr_survey
from fusion.methods.sparse.magmax import magmax
from fusion.methods.sparse.ram import ram, ram_survey
from fusion.methods.sparse.sce import sce
from fusion.methods.sparse.tall_mask import consensus, tall_mask
from fusion.methods.sparse.ties import ties, ties_survey
from fusion.methods.sparse.trust_region import trust_region, trust_region_survey
from fusion.methods.spectral.doge import doge_survey, doge_ta
from fusion.methods.spectral.iso import iso_c, iso_cts
from fusion.methods.spectral.optmerge import optmerge
from fusion.methods.spectral.shared_spaces import (
    core_space,
    in_core_space,
    in_output_directions,
    knots,
)
from fusion.methods.spectral.svc import svc
from fusion.methods.spectral.tsv import tsv_m
from fusion.methods.spectral.wudi import wudi
from fusion.methods.static.average import simple_average, weighted_average, wise_ft
from fusion.methods.static.model_stock import model_stock
from fusion.methods.static.nearswap import nearswap
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.methods.statistics.fisher import fisher, fisher_request, fisher_survey
from fusion.methods.statistics.lot import lot, lot_request
from fusion.methods.statistics.regmean import (
    regmean,
    regmean_plusplus,
    regmean_plusplus_request,
    regmean_request,
)

log = logging.getLogger(__name__)

TABLE: dict[str, Method] = {
    "simple_average": Static(
        simple_average,
        paper="Wortsman et al. 2022, arXiv:2203.05482 (uniform soup)",
        defaults="no parameters",
        affine=True,
    ),
    "weighted_average": Static(
        weighted_average,
        paper="Matena & Raffel 2022, arXiv:2111.09832 §2 (isotropic merging)",
        defaults="equal weights, normalised: FusionBench",
        affine=True,
    ),
    "task_arithmetic": Static(
        task_arithmetic,
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        defaults="scale 0.3: the paper's for eight tasks, FusionBench",
    ),
    "ties": Static(
        ties,
        paper="Yadav et al. 2023, arXiv:2306.01708",
        defaults="density 0.2, mean, scale 1: the paper's",
        survey=ties_survey,
    ),
    "dare": Static(
        dare,
        paper="Yu et al. 2024, arXiv:2311.03099",
        defaults="density 0.5, rescaled: FusionBench; then those of the method that merges",
        survey=dare_survey,
    ),
    "breadcrumbs": Static(
        breadcrumbs,
        paper="Davari & Belilovsky 2023, arXiv:2312.06795",
        defaults="density 0.15, gamma 0.006, scale 0.2: where the released code's search begins",
    ),
    "breadcrumbs_ties": Static(
        breadcrumbs_ties,
        paper="Davari & Belilovsky 2023, arXiv:2312.06795; election as Yadav, arXiv:2306.01708",
        defaults="density 0.15, gamma 0.006: breadcrumbs; sum, scale 1: mergekit",
    ),
    "della": Static(
        della,
        paper="Deep, Bhardwaj & Poria 2024, arXiv:2406.11617",
        defaults="density 0.7, ε 0.14, scale 1.1: the released code's example",
    ),
    "della_linear": Static(
        della_linear,
        paper="Deep, Bhardwaj & Poria 2024, arXiv:2406.11617 (MagPrune)",
        defaults="density 0.7, ε 0.14: as della; scale 0.3: task arithmetic",
    ),
    "sce": Static(
        sce,
        paper="Wan et al. 2024, arXiv:2408.07990 (FuseChat)",
        defaults="density 0.1: the paper's for FuseChat; scale 1",
    ),
    "ram": Static(
        ram,
        paper="Yuan et al. 2026, arXiv:2601.13572",
        defaults="ε 1e-5: the paper's; RAM+ off, its r 0.1 and α 0.2: mergekit",
        survey=ram_survey,
    ),
    "arcee_fusion": Static(
        arcee_fusion,
        paper="none: mergekit 0.1.4",
        defaults="1.5 interquartile ranges: mergekit",
    ),
    "magmax": Static(
        magmax,
        paper="Marczak et al. 2024, arXiv:2407.06322",
        defaults="scale 0.5: FusionBench",
    ),
    "slerp": Static(
        slerp,
        paper="Shoemake 1985 (SIGGRAPH); of weights as FusionBench, arXiv:2406.03280",
        defaults="t 0.5, threshold 0.9995: FusionBench",
    ),
    "nuslerp": Static(
        nuslerp,
        paper="none: mergekit 0.1.4; the arc is Shoemake's, 1985 (SIGGRAPH)",
        defaults="t 0.5; one vector a tensor: mergekit",
    ),
    "karcher": Static(
        karcher,
        paper="Grove & Karcher 1973, Math. Z. 132; of weights as mergekit 0.1.4",
        defaults="equal weights, 10 steps, tolerance 1e-5: mergekit",
    ),
    "multislerp": Static(
        multislerp,
        paper="none: mergekit 0.1.4, and Goddard's article on it (goddard.blog)",
        defaults="equal weights: ours; of weights: mergekit without a base model",
    ),
    "nearswap": Static(
        nearswap,
        paper="none: mergekit 0.1.4, and alchemonaut's card of QuartetAnemoi-70B",
        defaults="t 1e-4: the author's model",
    ),
    "model_stock": Static(
        model_stock,
        paper="Jang et al. 2024, arXiv:2403.19522",
        defaults="no parameters that change the method",
    ),
    "tsv_m": Static(
        tsv_m,
        paper="Gargiulo et al. 2025, arXiv:2412.00081",
        defaults="scale 1: FusionBench",
    ),
    "iso_c": Static(
        iso_c,
        paper="Marczak et al. 2025, arXiv:2502.04959",
        defaults="scale 1: FusionBench, whose tables use 1.5",
    ),
    "iso_cts": Static(
        iso_cts,
        paper="Marczak et al. 2025, arXiv:2502.04959, §5",
        defaults="scale 1, common_fraction 0.8: FusionBench",
    ),
    "wudi": Static(
        wudi,
        paper="Cheng et al. 2025, arXiv:2503.08099",
        defaults="Adam 1e-5, 400 steps: FusionBench",
    ),
    "optmerge": Static(
        optmerge,
        paper="Wei et al. 2025, arXiv:2505.19892 (WUDI v2)",
        defaults="300 steps, Adam 1e-5 from the sum: the released code's for full fine-tuning",
    ),
    "doge_ta": Static(
        doge_ta,
        paper="Wei et al. 2025, arXiv:2501.01230",
        defaults="λ 0.07, density 0.3, Adam 1e-4, 400 steps: the released code's",
        survey=doge_survey,
    ),
    "trust_region": Static(
        trust_region,
        paper="Sun et al. 2025, ICLR 2025, openreview q3ztjJRQuJ",
        defaults="scale 0.3, density 0.99: FusionBench",
        survey=trust_region_survey,
    ),
    "svc": Composed(
        svc,
        paper="Li et al. 2026, arXiv:2602.05536",
        defaults="on task arithmetic, alpha 0.1: FusionBench",
        methods=lambda: TABLE,
    ),
    "knots": Composed(
        knots,
        paper="Stoica et al. 2024, arXiv:2410.19735",
        defaults="of TIES: the paper's KnOTS-TIES",
        methods=lambda: TABLE,
        form=in_output_directions,
    ),
    "core_space": Composed(
        core_space,
        paper="Panariello et al. 2025, arXiv:2509.17786",
        defaults="of TSV-M: the paper's",
        methods=lambda: TABLE,
        form=in_core_space,
    ),
    "fisher": StatisticsBased(
        fisher,
        paper="Matena & Raffel 2022, arXiv:2111.09832",
        defaults="normalised, one sampled label: the paper's; 256 images, ε 1e-6: FusionBench",
        survey=fisher_survey,
        request=fisher_request,
    ),
    "regmean": StatisticsBased(
        regmean,
        paper="Jin et al. 2023, arXiv:2212.09849",
        defaults="α 0.95, 256 images: FusionBench for CLIP; ridge 1e-6: ours",
        request=regmean_request,
    ),
    "regmean_plusplus": StatisticsBased(
        regmean_plusplus,
        paper="Nguyen et al. 2025, arXiv:2508.03121",
        defaults="α 0.95, 256 images: FusionBench for CLIP; ridge 1e-6: ours",
        request=regmean_plusplus_request,
    ),
    "lot": StatisticsBased(
        lot,
        paper="Sun et al. 2025, arXiv:2505.23859 (LOT Merging)",
        defaults="64 images: the most of the paper's; cut of eigenvalues: torch.linalg.pinv's",
        request=lot_request,
    ),
    "consensus": Static(
        consensus,
        paper="Wang et al. 2024, arXiv:2405.07813, §4.3",
        defaults="two tasks: the paper's; threshold 0.4: the middle of its range",
    ),
    "emr": PerTask(
        emr,
        paper="Huang et al. 2024, arXiv:2405.17461",
        defaults="no parameters that change the method",
        survey=emr_survey,
    ),
    "tall_mask": PerTask(
        tall_mask,
        paper="Wang et al. 2024, arXiv:2405.07813, §4.1",
        defaults="threshold 0.4: the middle of the paper's range; scale 1",
    ),
    "surgery": Adapted(
        surgery,
        paper="Yang et al. 2024, arXiv:2402.02705 (Representation Surgery)",
        defaults="of task arithmetic; rank 16, Adam 1e-3, 1000 steps of 16 rows: the released code",
        apply=surgery_logits,
        requires=frozenset({"embeddings"}),
        methods=lambda: TABLE,
    ),
    "uniform_soup": Static(
        uniform_soup,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
        defaults="all ingredients, equal ones counted once",
        survey=soup_survey,
    ),
    "greedy_soup": Selected(
        greedy_soup,
        paper="Wortsman et al. 2022, arXiv:2203.05482, Recipe 1",
        defaults="by validation score, kept where not worse: the paper's",
    ),
    "learned_soup": Adaptive(
        learned_soup,
        paper="Wortsman et al. 2022, arXiv:2203.05482, appendix I",
        defaults="by tensor, Adam 0.05, batch 256, about 5 passes of 26,000: the released code's",
        labelled=True,
    ),
    "frank_wolfe": Adaptive(
        frank_wolfe,
        paper="Chen et al. 2025, arXiv:2503.12649 (FW-Merging)",
        defaults="10 steps of 100 rows a task from λ 0.3: the authors' in FusionBench; γ 2/(k + 2)",
        labelled=True,
    ),
    "best_single": Selected(
        best_single,
        paper="Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on the validation set)",
        defaults="no parameters",
    ),
    "oracle_single": Selected(
        oracle_single,
        paper="Wortsman et al. 2022, arXiv:2203.05482, table 1 (best on each test set)",
        defaults="no parameters",
    ),
    "wise_ft": Static(
        wise_ft,
        paper="Wortsman et al. 2022, arXiv:2109.01903",
        defaults="alpha 0.5: the paper's when there is no validation signal",
        affine=True,
    ),
    "adamerging": Adaptive(
        adamerging,
        paper="Yang et al. 2024, arXiv:2310.02575",
        defaults="λ 0.3, Adam 1e-3, batch 16: the paper's; 1000 steps: FusionBench",
    ),
    "concrete_task_arithmetic": InModel(
        concrete_task_arithmetic,
        paper="Tang et al. 2023, arXiv:2312.06173",
        defaults="λ 0.3, T 0.5, Adam 1e-3, 2000 steps: FusionBench; batch 16: what its file says",
        blend=masked_merge,
    ),
    "concrete_adamerging": InModel(
        concrete_adamerging,
        paper="Tang et al. 2023, arXiv:2312.06173, algorithm 1",
        defaults="λ 0.3, T 0.5, Adam 1e-3, inner 1, 1000 + 1000 steps: FusionBench",
        blend=masked_merge,
    ),
    "wemoe": InModel(
        wemoe,
        paper="Tang et al. 2024, arXiv:2402.00433",
        defaults="λ₀ 0.3, depth 2, Adam 1e-4, batch 16, 1000 steps: FusionBench",
        blend=None,
        requires=frozenset({"mlp_blocks"}),
    ),
    "ewemoe": InModel(
        ewemoe,
        paper="Shen et al. 2024, arXiv:2410.21804",
        defaults="a tenth kept, one router, else as wemoe: FusionBench",
        blend=None,
        requires=frozenset({"mlp_blocks"}),
    ),
    "dawe": Gated(
        dawe,
        paper="Tang et al., data-adaptive weight-ensembling (dict_fusion)",
        defaults="λ₀ 0.3, Adam 1e-5, batch 16, 1000 steps, ResNet-50: the published runs'",
    ),
    "dawin": Routed(
        dawin,
        paper="Oh et al. 2025, arXiv:2410.03782",
        defaults="domain-wise, scale 0.3: the released code's for several experts",
    ),
    "ensemble": LogitSpace(
        ensemble,
        paper="Wortsman et al. 2022, arXiv:2203.05482 §3 (logit ensemble)",
        defaults="equal weights over logits: the paper's",
    ),
    "greedy_ensemble": Fitted(
        fit_heads.greedy_ensemble,
        paper="Wortsman et al. 2022, arXiv:2203.05482, appendix (greedy ensemble)",
        defaults="accuracy, logits, kept where not worse: the paper's",
        apply=fit_heads.ensemble_logits,
        select_only=True,
    ),
    "linear_probe": Fitted(
        fit_heads.linear_probe,
        paper="Radford et al. 2021, arXiv:2103.00020",
        defaults="C 0.316 on features as they are: its repository's example",
        apply=fit_heads.probe_logits,
        requires=frozenset({"embeddings"}),
    ),
    "wise_ft_linear": Fitted(
        fit_heads.wise_ft_linear,
        paper="Wortsman et al. 2022, arXiv:2109.01903 (linear classifier)",
        defaults="α exact on the select split; C 100: ours",
        apply=fit_heads.wise_logits,
        requires=frozenset({"embeddings", "cosine_head"}),
        undefined="its α = 0 is a zero-shot head; wise_ft interpolates whole models",
    ),
    "tip_adapter": Fitted(
        fit_adapters.tip_adapter,
        paper="Zhang et al. 2022, arXiv:2207.09519",
        defaults="16 shots: the paper's; β over all of its ranges, α exact",
        apply=fit_adapters.cache_model_logits,
        requires=frozenset({"embeddings", "cosine_head"}),
    ),
    "tip_adapter_f": Fitted(
        fit_adapters.tip_adapter_f,
        paper="Zhang et al. 2022, arXiv:2207.09519, §3.3",
        defaults="AdamW 1e-3, 20 epochs, batch 256: the code's",
        apply=fit_adapters.cache_model_logits,
        requires=frozenset({"embeddings", "cosine_head"}),
    ),
    "clip_adapter": Fitted(
        fit_adapters.clip_adapter,
        paper="Gao et al. 2021, arXiv:2110.04544",
        defaults="ratio 0.2, bottleneck 4: the code's; 100 epochs at 1e-3: ours",
        apply=fit_adapters.adapter_logits,
        requires=frozenset({"embeddings", "cosine_head"}),
    ),
    "cafo": Fitted(
        fit_adapters.cafo,
        paper="Zhang et al. 2023, arXiv:2303.02151",
        defaults="z-scores, β 1: the code's; temperature and α chosen on the select split",
        apply=fit_adapters.cafo_logits,
        requires=frozenset({"embeddings", "cosine_head"}),
    ),
}
"""The table behind `METHODS`, which `add_methods` writes to."""

METHODS: Mapping[str, Method] = TABLE
"""Every method there is, by name: this package's, then those of other packages."""

RESERVED = ("pretrained", "experts", "import")
"""Names that no method can have: reference rows, and a key of sweep files."""


def add_methods(rows: Mapping[str, Method], module: str) -> None:
    """Add the methods of another package to `METHODS`; rows that are there already are left.

    Args:
        rows: name -> row.
        module: the module that they are from.

    Raises:
        InputError: no row, a name that no method can have, or one that is taken.
    """
    for name, row in rows.items():
        check_row(name, row, module)
        if TABLE.get(name) is not row and name in TABLE:
            owner = outside_methods.ORIGINS.get(name, "this package")
            raise InputError(f"{module}: method {name!r}: the name is taken by {owner}")
    for name, row in rows.items():
        if name not in TABLE:
            TABLE[name] = row
            outside_methods.ORIGINS[name] = module


def check_row(name: object, row: object, module: str) -> None:
    """Raise InputError if a row cannot be in `METHODS` under this name."""
    where = f"{module}: METHODS: {name!r}"
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise InputError(f"{where}: a Python identifier other than {', '.join(RESERVED)} needed")
    if not isinstance(row, Row):
        raise InputError(f"{where}: {type(row).__name__}: a row as Static(rule, …) needed")
    if row.rule.__name__ != name:
        raise InputError(f"{where}: its function is {row.rule.__name__!r}: one name needed")


def import_methods(
    modules: Iterable[str], folders: Iterable[str | os.PathLike[str]] = (), *, where: str = ""
) -> None:
    """Import modules with methods, by name, and add their methods to `METHODS`.

    Args:
        modules: names of modules.
        folders: where they are looked for if they are not installed.
        where: the field or option that names them, for messages.

    Raises:
        InputError: see `fusion.outside_methods.load` and `add_methods`.
    """
    places = list(folders)
    for module in modules:
        add_methods(outside_methods.load(module, places, where=where), module)


def add_installed() -> None:
    """Add the methods of installed packages, and those of `$FUSION_SWEEPS_IMPORT`.

    Raises:
        InputError: a module of the variable is not there, or is at fault. An installed package
            that is at fault is left out with a warning.
    """
    for module, rows in outside_methods.packaged(log.warning):
        try:
            add_methods(rows, module)
        except InputError as error:
            log.warning("%s; its methods are left out", error)
    for module, rows in outside_methods.named():
        add_methods(rows, module)


add_installed()
