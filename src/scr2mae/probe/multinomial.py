"""Multinomial logistic regression, fitted along a path of penalties.

The second moment of the features is decomposed once and preconditions every fit: the mean Hessian over cells is
close to a Kronecker product of a class factor and the second moment. In coordinates where that product is the
identity, L-BFGS needs a few dozen steps instead of hundreds.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from scr2mae.probe.folds import Float, to_dense

# With more features, the decomposition costs more than the steps it saves; precondition with the variances alone.
_MAX_DECOMPOSED = 2048
# Corrections kept by L-BFGS, more than scipy's default of ten because an evaluation is expensive.
_N_CORRECTIONS = 20
# Half a megabyte of float64. Reading the features from memory dominates the cost; a block in cache is read once.
_BLOCK_ENTRIES = 65_536


@dataclass(frozen=True)
class _Frame:
    """Coordinates in which the mean Hessian, ``class_curvature (x) second_moment + penalty``, is the identity.

    Both factors are decomposed, so that the change of coordinates is a rotation on each side and a scale per entry.
    """

    rotation: Float | None  # (n_features, n_features), None if the second moment is taken as diagonal
    class_rotation: Float  # (n_classes, n_classes)
    scale: Float  # (n_features, n_classes)
    intercept_scale: Float  # (n_classes,)

    @classmethod
    def of(cls, moment: tuple[Float, Float | None], class_curvature: Float, penalty: float) -> "_Frame":
        """Return the frame in which the curvature of the loss is close to the identity."""
        curvature, class_rotation = eigh(class_curvature)
        curvature = np.maximum(curvature, 0.0)
        # Adding a constant to all intercepts does not change the probabilities: that direction has neither
        # curvature nor gradient, and any scale will do.
        flat = (
            curvature <= 1e-12 * curvature[-1] if curvature[-1] > 0 else np.ones(len(curvature), dtype=bool)
        )
        values, rotation = moment
        return cls(
            rotation=rotation,
            class_rotation=class_rotation,
            scale=np.sqrt(np.outer(values, curvature) + penalty),
            intercept_scale=np.sqrt(np.where(flat, 1.0, curvature)),
        )

    def to_frame(self, coef: Float, intercept: Float) -> Float:
        inner, inner_intercept = self._rotate(coef, intercept)
        return np.concatenate([(inner * self.scale).ravel(), inner_intercept * self.intercept_scale])

    def from_frame(self, z: Float) -> tuple[Float, Float]:
        inner, inner_intercept = z[: self.scale.size].reshape(self.scale.shape), z[self.scale.size :]
        rotated = (inner / self.scale) @ self.class_rotation.T
        coef = rotated if self.rotation is None else self.rotation @ rotated
        return coef, (inner_intercept / self.intercept_scale) @ self.class_rotation.T

    def gradient_to_frame(self, coef: Float, intercept: Float) -> Float:
        inner, inner_intercept = self._rotate(coef, intercept)
        return np.concatenate([(inner / self.scale).ravel(), inner_intercept / self.intercept_scale])

    def _rotate(self, coef: Float, intercept: Float) -> tuple[Float, Float]:
        rotated = coef if self.rotation is None else self.rotation.T @ coef
        return rotated @ self.class_rotation, intercept @ self.class_rotation


class MultinomialPath:
    """Minimize (1 / n) sum_i -log softmax(x_i W + b)[y_i] + penalty / 2 ||W||² for one penalty after the other.

    This is scikit-learn's objective at ``penalty = 1 / (n C)``. Two classes are two symmetric columns: the single
    column of binary logistic regression is their difference, at half the penalty. ``X`` is float64, dense or CSR,
    shape ``(n_obs, n_features)``; ``codes`` are classes in [0, n_classes), all present, shape ``(n_obs,)``.
    """

    def __init__(self, X: Any, codes: NDArray[np.intp], *, tol: float, max_iter: int) -> None:
        self._tol, self._max_iter, self._n_obs = tol, max_iter, X.shape[0]
        self._blocks = _row_blocks(X, codes)
        # Features are centered by subtracting the means after the product, so that X may stay sparse.
        self._mean = np.asarray(X.mean(axis=0)).ravel()
        self._moment = _second_moment(X, self._mean)
        share = np.bincount(codes) / len(codes)
        self._coef = np.zeros((X.shape[1], len(share)))
        self._intercept = np.log(share) - np.log(share).mean()
        self.n_iter = 0

    def solve(self, penalty: float) -> tuple[Float, Float]:
        """Return weights, shape ``(n_features, n_classes)``, and intercepts, starting from the last solution."""
        frame = _Frame.of(self._moment, self._class_curvature(), penalty)
        result = minimize(
            self._objective,
            frame.to_frame(self._coef, self._intercept),
            args=(frame, penalty),
            method="L-BFGS-B",
            jac=True,
            options={
                "maxiter": self._max_iter,
                "maxfun": 10 * self._max_iter,
                "maxcor": _N_CORRECTIONS,
                "gtol": self._tol,
                "ftol": 8 * np.finfo(float).eps,
            },
        )
        self.n_iter += int(result.nit)
        if result.nit >= self._max_iter:
            warnings.warn(
                f"Logistic regression did not reach tol={self._tol} in max_iter={self._max_iter} steps; raise "
                "max_iter or scale the features.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._coef, self._intercept = frame.from_frame(result.x)
        return self._coef, self._intercept - self._mean @ self._coef

    def _forward(self, coef: Float, intercept: Float) -> Iterator[tuple[Any, NDArray[np.intp], Float, float]]:
        """Yield features, classes, class probabilities and summed negative log-likelihood per block of cells."""
        offset = intercept - self._mean @ coef
        for X, codes in self._blocks:
            raw = np.asarray(X @ coef)  # (n_block, n_classes)
            raw += offset
            raw -= raw.max(axis=1, keepdims=True)
            observed = raw[np.arange(len(codes)), codes].sum()
            np.exp(raw, out=raw)
            total = raw.sum(axis=1, keepdims=True)
            raw /= total
            yield X, codes, raw, float(np.log(total).sum() - observed)

    def _class_curvature(self) -> Float:
        """Return the mean of diag(p) - pp' over cells at the current solution, shape ``(n_classes, n_classes)``."""
        curvature = np.zeros((len(self._intercept), len(self._intercept)))
        for _, _, probability, _ in self._forward(self._coef, self._intercept):
            curvature -= probability.T @ probability
            curvature[np.diag_indices_from(curvature)] += probability.sum(axis=0)
        return curvature / self._n_obs

    def _objective(self, z: Float, frame: _Frame, penalty: float) -> tuple[float, Float]:
        coef, intercept = frame.from_frame(z)
        loss, gradient, total = 0.0, np.zeros_like(coef), np.zeros_like(intercept)
        for X, codes, residual, block_loss in self._forward(coef, intercept):
            residual[np.arange(len(codes)), codes] -= 1.0
            gradient += X.T @ residual
            total += residual.sum(axis=0)
            loss += block_loss
        gradient = (gradient - np.outer(self._mean, total)) / self._n_obs + penalty * coef
        value = loss / self._n_obs + 0.5 * penalty * float(np.vdot(coef, coef))
        return value, frame.gradient_to_frame(gradient, total / self._n_obs)


def _row_blocks(X: Any, codes: NDArray[np.intp]) -> list[tuple[Any, NDArray[np.intp]]]:
    """Split dense features so that a block stays in cache between the two products of one evaluation."""
    size = max(32, _BLOCK_ENTRIES // X.shape[1]) if isinstance(X, np.ndarray) else X.shape[0]
    return [(X[i : i + size], codes[i : i + size]) for i in range(0, X.shape[0], size)]


def _second_moment(X: Any, mean: Float) -> tuple[Float, Float | None]:
    """Return eigenvalues and eigenvectors of the centered second moment, or the variances alone if it is large."""
    if X.shape[1] > _MAX_DECOMPOSED:
        squares = np.square(X) if isinstance(X, np.ndarray) else X.power(2)
        return np.maximum(np.asarray(squares.mean(axis=0)).ravel() - mean**2, 0.0), None
    values, vectors = eigh(
        to_dense(X.T @ X) / X.shape[0] - np.outer(mean, mean), overwrite_a=True, driver="evd"
    )
    return np.maximum(values, 0.0), vectors
