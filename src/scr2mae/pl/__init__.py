"""Figures: each function draws on the given Axes and returns them.

Without ``ax`` a new pyplot figure is created, which notebooks show automatically; with ``ax`` pyplot is not used.
Settings of matplotlib are not changed.
"""

from scr2mae.pl.axes import OKABE_ITO
from scr2mae.pl.curriculum import curriculum_history, curriculum_weights
from scr2mae.pl.embeddings import embedding
from scr2mae.pl.probes import calibration, donor_predictions, probe_genes
from scr2mae.pl.tables import benchmark_reconstruction, benchmark_scores, integration_scores
from scr2mae.pl.training import reconstruction, training_curves

__all__ = [
    "OKABE_ITO",
    "benchmark_reconstruction",
    "benchmark_scores",
    "calibration",
    "curriculum_history",
    "curriculum_weights",
    "donor_predictions",
    "embedding",
    "integration_scores",
    "probe_genes",
    "reconstruction",
    "training_curves",
]
