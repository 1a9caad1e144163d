import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from scr2mae import datasets
from scr2mae.datasets import _download


@pytest.fixture(scope="session")
def simulated() -> AnnData:
    return datasets.simulate_donors(
        n_donors=12,
        n_cells_per_donor=200,
        n_genes=300,
        n_cell_types=4,
        n_batches=3,
        disease_effect=0.7,
        age_effect=0.2,
    )


@pytest.fixture
def atlas_like(simulated) -> AnnData:
    """Log-values in X, raw counts of more genes in raw, as the portal lays its files out."""
    counts = simulated.X[::4].astype(np.float64)
    n_obs = counts.shape[0]
    counts[:5] = counts[:5].multiply(np.arange(counts.shape[1]) < 3)  # cells with hardly any gene
    full = AnnData(X=sp.csr_matrix(counts), obs=simulated.obs.iloc[::4].copy(), var=simulated.var.copy())
    adata = full.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.raw = full
    adata = adata[:, 10:].copy()
    adata.obsm["X_other"] = np.arange(2.0 * n_obs).reshape(n_obs, 2)
    return adata


@dataclass
class Site:
    """A small web site with the faults that a test asks for."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True  # whether range requests are honoured
    validators: bool = True  # whether an ETag is sent
    lengths: bool = True  # whether the length is announced
    shift: int = 0  # bytes by which range answers miss what was asked
    break_after: list[int] = field(default_factory=list)  # bytes after which the next answers break
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header)
    sent: int = 0
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self):
        site, asked = self.site, self.headers.get("Range")
        site.requests.append((self.path, asked))
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            self.end_headers()
            return
        body = site.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        start = 0
        if asked and site.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + site.shift
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if site.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        if site.validators:
            self.send_header("ETag", etag)
        self.end_headers()
        stop = start + site.break_after.pop(0) if site.break_after else len(body)
        self.wfile.write(body[start:stop])
        site.sent += len(body[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_download, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(_download, "_BACKOFF_SECONDS", 0.0)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()
