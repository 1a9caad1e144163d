"""Donor-held-out linear probes."""

from scr2mae.probe._split import DonorSplit, check_no_donor_leak, donor_split

__all__ = ["DonorSplit", "check_no_donor_leak", "donor_split"]
