"""Model fusion as mathematics: tensors in, tensors out.

Axes everywhere: T tasks (experts), B batch, C classes, G groups of tensors that share a
coefficient, D embedding width.
"""

from fusion.analysis.significance import holm as holm
from fusion.analysis.significance import mcnemar as mcnemar
from fusion.analysis.significance import mean_interval as mean_interval
from fusion.analysis.significance import wilson as wilson
from fusion.errors import InputError as InputError
from fusion.logits.cosine_head import zero_shot_head as zero_shot_head
from fusion.merged_layers.functional import merged_linear as merged_linear
from fusion.methods.classifiers.ensemble import ensemble as ensemble
from fusion.methods.learned.adamerging import adamerging as adamerging
from fusion.methods.learned.dawe import dawe as dawe
from fusion.methods.learned.gate import Gate as Gate
from fusion.methods.learned.learned_soup import learned_soup as learned_soup
from fusion.methods.routed.dawin import dawin as dawin
from fusion.methods.soups.selection import best_single as best_single
from fusion.methods.soups.selection import greedy_soup as greedy_soup
from fusion.methods.soups.selection import oracle_single as oracle_single
from fusion.methods.soups.uniform_soup import uniform_soup as uniform_soup
from fusion.methods.static.average import simple_average as simple_average
from fusion.methods.static.average import weighted_average as weighted_average
from fusion.methods.static.average import wise_ft as wise_ft
from fusion.methods.static.task_arithmetic import task_arithmetic as task_arithmetic
from fusion.methods.static.ties import ties as ties
from fusion.registry import METHODS as METHODS
from fusion.registry import Adaptive as Adaptive
from fusion.registry import Gated as Gated
from fusion.registry import Learned as Learned
from fusion.registry import LogitSpace as LogitSpace
from fusion.registry import Method as Method
from fusion.registry import Resident as Resident
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
