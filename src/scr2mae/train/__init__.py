"""One training plan for every modality, on Lightning."""

from scr2mae.train.averaging import RunningWeightAverage
from scr2mae.train.curriculum_log import CurriculumLog, expression_deciles
from scr2mae.train.guard import NonFiniteError, StepGuard
from scr2mae.train.learning_rate import LearningRateSchedule
from scr2mae.train.loop import fit
from scr2mae.train.plan import VALIDATION_RATIOS, MaskedTrainingPlan
from scr2mae.train.progress import TrainingProgress

__all__ = [
    "VALIDATION_RATIOS",
    "CurriculumLog",
    "LearningRateSchedule",
    "MaskedTrainingPlan",
    "NonFiniteError",
    "RunningWeightAverage",
    "StepGuard",
    "TrainingProgress",
    "expression_deciles",
    "fit",
]
