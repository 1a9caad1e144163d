"""Donor-held-out linear probes."""

from scr2mae.probe._linear_probe import donor_splits, linear_probe
from scr2mae.probe._logistic import LogisticProbe
from scr2mae.probe._ridge import RidgeProbe
from scr2mae.probe._split import DonorSplit, check_no_donor_leak, donor_split

__all__ = [
    "DonorSplit",
    "LogisticProbe",
    "RidgeProbe",
    "check_no_donor_leak",
    "donor_split",
    "donor_splits",
    "linear_probe",
]
