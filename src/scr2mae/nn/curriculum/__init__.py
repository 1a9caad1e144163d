"""Learned weights on the loss, balanced by Sinkhorn, with a gradient that turns from easy to hard.

A positive matrix of features by masking ratios multiplies the element-wise loss. Sinkhorn balancing gives every feature
and every ratio the same mass, so weights move emphasis and never scale. The network that computes the matrix first
lowers the weighted loss, which favors easy elements; then its gradient changes sign and favors hard ones.
Shared by cells (one matrix per mini-batch) and tokens (one row per masked token). Dong et al. 2025, appendices A.3,
C.7, C.8.
"""

from scr2mae.nn.curriculum.settings import Curriculum, GradientSchedule
from scr2mae.nn.curriculum.sinkhorn import balance_errors, sinkhorn
from scr2mae.nn.curriculum.weights import CurriculumWeights, scale_gradient

__all__ = [
    "Curriculum",
    "CurriculumWeights",
    "GradientSchedule",
    "balance_errors",
    "scale_gradient",
    "sinkhorn",
]
