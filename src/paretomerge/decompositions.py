"""Every matrix decomposition of the package, so that none ends the program: LAPACK's quick way, then fp64 at unit scale, then
another driver, then one line.

LAPACK's divide and conquer may fail to converge, on stacks of equal singular vectors for example, and where values are as
large as 1e30 squares overflow in fp32. Whoever knows which tensor it is adds its name with ``of_tensor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretomerge.errors import UserError

_Parts = tuple[Tensor, ...]
_LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class UndecomposableError(UserError):
    """No decomposition of a matrix was found, in a line that does not say yet which one it is."""


@contextmanager
def of_tensor(name: str) -> Iterator[None]:
    """What fails inside is told with the tensor's name.

    Raises:
        UserError: a decomposition fails.
    """
    try:
        yield
    except UndecomposableError as error:
        raise UserError(
            f"{name}: {error}: look at this tensor's values in the base and the experts, or leave it out (--exclude '{name}')"
        ) from error


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (…, m, r), S (…, r) and Vᵀ (…, r, n) with r = min(m, n), in the matrix's dtype.

    Raises:
        UndecomposableError: entries that are not finite, or no driver converges.
    """

    def gesvd(m: Tensor) -> _Parts:
        from scipy.linalg import svd as scipy_svd

        each = [scipy_svd(one.numpy(), full_matrices=False, lapack_driver="gesvd") for one in m.reshape(-1, *m.shape[-2:])]
        stacked = (torch.from_numpy(np.stack(parts)) for parts in zip(*each, strict=True))
        return tuple(part.reshape(*m.shape[:-2], *part.shape[1:]) for part in stacked)

    u, s, v_t = _decomposed(matrix, lambda m: torch.linalg.svd(m, full_matrices=False), gesvd, of_scale=1)
    return u, s, v_t


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (n,), ascending, and eigenvectors (n, n), in columns, of a symmetric matrix.

    Raises:
        UndecomposableError: as in ``svd``.
    """

    def ev(m: Tensor) -> _Parts:
        from scipy.linalg import eigh as scipy_eigh

        return tuple(torch.from_numpy(part) for part in scipy_eigh(m.numpy(), driver="ev"))

    values, vectors = _decomposed(matrix, torch.linalg.eigh, ev, of_scale=0)
    return values, vectors


def qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Q (…, m, r) with orthonormal columns and R (…, r, n), r = min(m, n).

    Raises:
        UndecomposableError: as in ``svd``.
    """
    q, r = _decomposed(matrix, torch.linalg.qr, None, of_scale=1)
    return q, r


def cholesky(matrix: Tensor) -> tuple[Tensor, bool]:
    """The lower factor of a symmetric matrix, and whether there is one: the matrix is positive definite.

    Raises:
        UndecomposableError: entries that are not finite, so that nothing added to the diagonal would help.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        _check_finite(matrix)
    return factor, not failed


def solve_from_right(matrix: Tensor, right: Tensor) -> Tensor:
    """X with X · matrix = right; of a singular matrix the shortest X that comes nearest.

    Raises:
        UndecomposableError: entries that are not finite, or no driver converges.
    """
    _check_finite(matrix)  # LAPACK may divide by an infinity and say nothing
    _check_finite(right)
    try:
        found = torch.linalg.solve(matrix, right, left=False)
        if bool(torch.isfinite(found).all()):
            return found
    except _LinAlgError:
        pass
    return torch.from_numpy(least_squares(matrix.T.cpu().numpy(), right.T.cpu().numpy())).T.to(right)


def least_squares(matrix: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.floating]:
    """The shortest of the minimisers of ‖matrix · x − right‖.

    Raises:
        UndecomposableError: as in ``svd``.
    """
    _check_finite(torch.from_numpy(matrix))
    _check_finite(torch.from_numpy(right))
    try:
        found: NDArray[np.floating] = np.linalg.lstsq(matrix, right, rcond=None)[0]
    except np.linalg.LinAlgError:
        from scipy.linalg import lstsq

        found = lstsq(matrix, right, lapack_driver="gelsy")[0]  # pivoted QR: nothing that has to converge
    return found


def non_negative_least_squares(matrix: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.floating]:
    """argmin ‖matrix · x − right‖ over x ≥ 0.

    Raises:
        UndecomposableError: entries that are not finite, or its steps come to no end.
    """
    from scipy.optimize import nnls

    try:
        return np.asarray(nnls(matrix, right)[0])
    except RuntimeError:  # more steps than it allows itself
        try:
            return np.asarray(nnls(matrix, right, maxiter=100 * matrix.shape[1])[0])
        except RuntimeError:
            raise UndecomposableError("non-negative least squares do not converge") from None
    except ValueError:
        raise UndecomposableError("entries that are NaN or infinite, so there are no least squares") from None


def _decomposed(
    matrix: Tensor, quick: Callable[[Tensor], _Parts], other: Callable[[Tensor], _Parts] | None, *, of_scale: int
) -> _Parts:
    """What ``quick`` gives; else what it or ``other`` does in fp64 at unit scale. Part ``of_scale`` grows with the matrix."""
    if (parts := _tried(quick, matrix)) is not None:
        return parts
    _check_finite(matrix)
    wide = matrix.detach().double().cpu()
    scale = float(wide.abs().max()) or 1.0
    for driver in (quick, other):
        if driver is None or (parts := _tried(driver, wide / scale)) is None:
            continue
        parts = tuple((part * scale if i == of_scale else part).to(matrix) for i, part in enumerate(parts))
        if all(bool(torch.isfinite(part).all()) for part in parts):
            return parts
    raise UndecomposableError(f"no decomposition converges (entries up to {scale:.3g})")


def _tried(driver: Callable[[Tensor], _Parts], matrix: Tensor) -> _Parts | None:
    """The parts, all finite; None where LAPACK says that it failed, or does not say so."""
    try:
        parts = tuple(driver(matrix))
    except (_LinAlgError, np.linalg.LinAlgError):
        return None
    return parts if all(bool(torch.isfinite(part.sum())) for part in parts) else None


def _check_finite(matrix: Tensor) -> None:
    if bad := int((~torch.isfinite(matrix)).sum()):
        raise UndecomposableError(f"{bad} of {matrix.numel()} entries are NaN, infinite or too large to be decomposed")
