"""Masked language models of DNA over whole-genome alignments, and scores of variants."""

from scr2mae.extra.dna.alignment import GenomeMSA
from scr2mae.extra.dna.alphabet import VOCABULARY, encode, reverse_complement
from scr2mae.extra.dna.baselines import alignment_log_probs, alignment_scores, unigram_log_probs
from scr2mae.extra.dna.config import GPNMSAConfig
from scr2mae.extra.dna.dataset import MSAWindowDataset
from scr2mae.extra.dna.inference import embed, predict_bases
from scr2mae.extra.dna.metrics import variant_metrics
from scr2mae.extra.dna.network import GPNMSAForMaskedLM, MaskedLMOutput
from scr2mae.extra.dna.scoring import score
from scr2mae.extra.dna.simulation import simulate_alignment
from scr2mae.extra.dna.tracks import ArrayTrack, Track, open_track
from scr2mae.extra.dna.training import VALIDATION_RATIOS, pretrain
from scr2mae.extra.dna.variants import STATUSES, check_variants, read_variants
from scr2mae.extra.dna.windows import WindowSplit, make_windows, read_windows, select_windows, split_windows

__all__ = [
    "STATUSES",
    "VALIDATION_RATIOS",
    "VOCABULARY",
    "ArrayTrack",
    "GPNMSAConfig",
    "GPNMSAForMaskedLM",
    "GenomeMSA",
    "MSAWindowDataset",
    "MaskedLMOutput",
    "Track",
    "WindowSplit",
    "alignment_log_probs",
    "alignment_scores",
    "check_variants",
    "embed",
    "encode",
    "make_windows",
    "open_track",
    "predict_bases",
    "pretrain",
    "read_variants",
    "read_windows",
    "reverse_complement",
    "score",
    "select_windows",
    "simulate_alignment",
    "split_windows",
    "unigram_log_probs",
    "variant_metrics",
]
