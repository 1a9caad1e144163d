"""One training plan for every modality, on Lightning."""

from scr2mae.train.callbacks import RunningWeightAverage
from scr2mae.train.guard import NonFiniteError
from scr2mae.train.learning_rate import LearningRateSchedule
from scr2mae.train.loop import fit
from scr2mae.train.plan import VALIDATION_RATIOS, MaskedTrainingPlan

__all__ = [
    "VALIDATION_RATIOS",
    "LearningRateSchedule",
    "MaskedTrainingPlan",
    "NonFiniteError",
    "RunningWeightAverage",
    "fit",
]
