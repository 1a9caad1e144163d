"""Learned weights on the loss, balanced by Sinkhorn, with a gradient that turns from easy to hard.

A positive matrix of features by masking ratios multiplies the element-wise loss. Sinkhorn balancing gives every feature
and every ratio the same mass, so weights move emphasis and never scale. The network that makes the matrix first lowers
the weighted loss, which favors what is easy; then its gradient turns round and favors what is hard.
Shared by cells (one matrix a mini-batch) and DNA (one row a masked token). Dong et al. 2025, appendices A.3, C.7, C.8.
"""

from scr2mae.nn.curriculum.schedule import GradientSchedule, scale_gradient
from scr2mae.nn.curriculum.settings import Curriculum
from scr2mae.nn.curriculum.sinkhorn import balance_errors, sinkhorn
from scr2mae.nn.curriculum.weights import CurriculumWeights

__all__ = [
    "Curriculum",
    "CurriculumWeights",
    "GradientSchedule",
    "balance_errors",
    "scale_gradient",
    "sinkhorn",
]
