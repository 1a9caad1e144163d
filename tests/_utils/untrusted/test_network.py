"""Neither import nor training uses the network."""

import subprocess
import sys

ALONE = """
import importlib, sys, warnings

warnings.simplefilter("ignore")
ASKS = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind", "urllib.Request", "http.client.connect"}

def refuse(event, arguments):
    # urllib3 asks the system whether it has IPv6, on the loopback.
    if event in ASKS and not (event == "socket.bind" and arguments[1][0] in ("::1", "127.0.0.1")):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
import scr2mae
for name in sorted(scr2mae.__all__):
    getattr(scr2mae, name)
for name in ("model.hub", "cli", "extra.dna", "extra.vision", "extra.text"):
    importlib.import_module(f"scr2mae.{name}")
adata = scr2mae.datasets.simulate_donors(n_donors=4, n_cells_per_donor=10, n_genes=20)
model = scr2mae.R2MAEModel(adata, n_hidden=4, n_latent=2)
model.train(1, batch_size=8, accelerator="cpu", enable_progress_bar=False)
model.get_latent_representation()
print("done")
"""


def test_neither_import_nor_training_uses_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
