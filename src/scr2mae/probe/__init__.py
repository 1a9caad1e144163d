"""Donor-held-out linear probes."""

from scr2mae.probe.logistic import LogisticProbe
from scr2mae.probe.probing import donor_splits, linear_probe
from scr2mae.probe.ridge import RidgeProbe
from scr2mae.probe.splits import DonorSplit, check_no_donor_leak, donor_split

__all__ = [
    "DonorSplit",
    "LogisticProbe",
    "RidgeProbe",
    "check_no_donor_leak",
    "donor_split",
    "donor_splits",
    "linear_probe",
]
