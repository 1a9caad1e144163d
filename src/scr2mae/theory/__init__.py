"""Linear theory of masked pretraining: covariance models, risk formulas and simulations, on numpy and scipy alone."""

from scr2mae._utils.spectrum import effective_rank as effective_rank  # documented in scr2mae.metrics
from scr2mae.theory.covariance import (
    Covariance,
    aligned_signal,
    beta_covariance,
    haar_orthogonal,
    isotropic_covariance,
    latent_covariance,
    low_rank_covariance,
    spectral_covariance,
    spiked_covariance,
    uniform_covariance,
)
from scr2mae.theory.curves import align_accuracy, align_errors, read_accuracies
from scr2mae.theory.laws import RatioLaw
from scr2mae.theory.optimum import OptimalRatio, optimal_ratio
from scr2mae.theory.profile import MaskProfile, ShrunkCovariance, ledoit_wolf, mask_profile
from scr2mae.theory.randomized import r2mae_risk
from scr2mae.theory.risk import (
    RiskTerms,
    eigenvector_risk,
    general_risk,
    general_terms,
    isotropic_risk,
)
from scr2mae.theory.simulate import SimulatedRisk, minimum_norm, simulate_risk
from scr2mae.theory.spiked import (
    SpikedTerms,
    spiked_risk,
    spiked_spectral_terms,
    spiked_terms,
    sweet_spot,
)

__all__ = [
    "Covariance",
    "MaskProfile",
    "OptimalRatio",
    "RatioLaw",
    "RiskTerms",
    "ShrunkCovariance",
    "SimulatedRisk",
    "SpikedTerms",
    "align_accuracy",
    "align_errors",
    "aligned_signal",
    "beta_covariance",
    "eigenvector_risk",
    "general_risk",
    "general_terms",
    "haar_orthogonal",
    "isotropic_covariance",
    "isotropic_risk",
    "latent_covariance",
    "ledoit_wolf",
    "low_rank_covariance",
    "mask_profile",
    "minimum_norm",
    "optimal_ratio",
    "r2mae_risk",
    "read_accuracies",
    "simulate_risk",
    "spectral_covariance",
    "spiked_covariance",
    "spiked_risk",
    "spiked_spectral_terms",
    "spiked_terms",
    "sweet_spot",
    "uniform_covariance",
]
