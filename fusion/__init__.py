"""Model fusion as mathematics: tensors in, tensors out.

Axes everywhere: T tasks (experts), B batch, C classes, G groups of tensors that share a
coefficient, D embedding width.
"""

from fusion.adamerging import adamerging as adamerging
from fusion.arithmetic import task_arithmetic as task_arithmetic
from fusion.average import simple_average as simple_average
from fusion.average import weighted_average as weighted_average
from fusion.average import wise_ft as wise_ft
from fusion.coding import Coding as Coding
from fusion.coding import mix as mix
from fusion.coding import one_hot as one_hot
from fusion.dawe import dawe as dawe
from fusion.dawin import dawin as dawin
from fusion.ensemble import ensemble as ensemble
from fusion.errors import InputError as InputError
from fusion.gate import Gate as Gate
from fusion.learned_soup import learned_soup as learned_soup
from fusion.lowrank import LowRank as LowRank
from fusion.merged import merged_linear as merged_linear
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
from fusion.selection import best_single as best_single
from fusion.selection import greedy_soup as greedy_soup
from fusion.selection import oracle_single as oracle_single
from fusion.significance import holm as holm
from fusion.significance import mcnemar as mcnemar
from fusion.significance import mean_interval as mean_interval
from fusion.significance import wilson as wilson
from fusion.soup import uniform_soup as uniform_soup
from fusion.state import Deltas as Deltas
from fusion.state import StateDict as StateDict
from fusion.state import TaskVectors as TaskVectors
from fusion.survey import Survey as Survey
from fusion.survey import run_surveys as run_surveys
from fusion.ties import ties as ties
from fusion.zeroshot import logits as logits
from fusion.zeroshot import zero_shot_head as zero_shot_head
