"""Linear probes with donors held out: scores of an embedding, and probes that are kept and applied to new donors."""

from scr2mae.probe.attribution import gene_attribution, rank_stability, score_without_genes
from scr2mae.probe.designs import design_table
from scr2mae.probe.fitting import fit_probe
from scr2mae.probe.hierarchy import roll_up
from scr2mae.probe.kept import Probe
from scr2mae.probe.logistic import LogisticProbe
from scr2mae.probe.permutations import (
    PermutationResult,
    compare_representations,
    donor_power,
    permutation_test,
)
from scr2mae.probe.probing import donor_splits, linear_probe
from scr2mae.probe.ridge import RidgeProbe
from scr2mae.probe.splits import DonorSplit, check_no_donor_leak, donor_split

__all__ = [
    "DonorSplit",
    "LogisticProbe",
    "PermutationResult",
    "Probe",
    "RidgeProbe",
    "check_no_donor_leak",
    "compare_representations",
    "design_table",
    "donor_power",
    "donor_split",
    "donor_splits",
    "fit_probe",
    "gene_attribution",
    "linear_probe",
    "permutation_test",
    "rank_stability",
    "roll_up",
    "score_without_genes",
]
