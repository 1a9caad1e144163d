"""Execute notebooks and store their outputs, without times of day, progress bars and log lines.

python tutorials/execute.py tutorials/1_quick_start.ipynb ...
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"


def is_log(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar or text on stderr."""
    is_bar = WIDGET in output.get("data", {})
    return is_bar or output.get("name") == "stderr"


def execute(path: Path) -> None:
    """Run a notebook from top to bottom, where it lies, and write it back."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_log(output)]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))
