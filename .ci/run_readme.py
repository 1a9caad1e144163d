"""Run the Python blocks of a README on simulated donors, outside the repository, with the package that is installed.

Usage: python .ci/run_readme.py README.md FOLDER
"""

import os
import re
import sys
from pathlib import Path

import matplotlib

import scr2mae


def main(readme: Path, folder: Path) -> None:
    """Write the files that the README reads into a folder, and run its blocks there."""
    matplotlib.use("agg")
    if Path(scr2mae.__file__).is_relative_to(readme.resolve().parent / "src"):
        sys.exit("This runs the working tree; install the wheel.")
    text = readme.read_text(encoding="utf-8")
    os.chdir(folder)
    cells = scr2mae.datasets.simulate_donors(
        n_donors=8, n_cells_per_donor=25, n_genes=2500, disease_effect=2.0
    )
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    cells.write_h5ad("cells.h5ad")
    cells[:, ::2].write_h5ad("new.h5ad")
    namespace: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block, namespace)
    if not Path("umap.png").is_file():
        sys.exit("No figure was drawn.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
