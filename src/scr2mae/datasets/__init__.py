"""Real counts offline, simulated donors with known effects, and the two atlases of the paper.

Only `fetch`, `hlca` and `sea_ad` use the network, and only when they are called.
"""

from scr2mae.data.prepare.pipeline import prepare
from scr2mae.data.preprocess import highly_variable_genes, preprocess
from scr2mae.datasets.atlas import Atlas, hlca, load_atlas, sea_ad
from scr2mae.datasets.download import fetch
from scr2mae.datasets.pbmc import pbmc68k, recover_counts
from scr2mae.datasets.simulate import simulate_donors
from scr2mae.datasets.simulated_atlas import simulate_atlas

__all__ = [
    "Atlas",
    "fetch",
    "highly_variable_genes",
    "hlca",
    "load_atlas",
    "pbmc68k",
    "prepare",
    "preprocess",
    "recover_counts",
    "sea_ad",
    "simulate_atlas",
    "simulate_donors",
]
