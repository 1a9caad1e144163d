"""Share of the branches that tests took, from coverage's JSON; exit code 1 if it is too small.

coverage's own ``fail_under`` counts lines and branches together, which hides the branches behind the lines.
"""

import argparse
import json
import sys
from pathlib import Path


def share_of_branches(report: dict[str, dict[str, int]]) -> float:
    """Percent of the branches that were taken; 100 where there are none.

    Parameters
    ----------
    report
        What ``coverage json`` writes.
    """
    totals = report["totals"]
    return 100 * totals["covered_branches"] / totals["num_branches"] if totals["num_branches"] else 100.0


def main() -> int:
    """Print the share, and compare it with what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--at-least", type=float, required=True, metavar="PERCENT")
    options = parser.parse_args()
    share = share_of_branches(json.loads(options.report.read_text(encoding="utf-8")))
    sys.stdout.write(f"branches taken: {share:.1f} %, at least {options.at_least:g} % wanted\n")
    return int(share < options.at_least)


if __name__ == "__main__":
    sys.exit(main())
