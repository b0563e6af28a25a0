"""Position embeddings of a square grid of patches: MAE's fixed ones, and resizing."""

import numpy as np

from sdfp.types import UserError


def sincos(dim: int, grid: int) -> np.ndarray:
    """The fixed two-dimensional sine-cosine position embedding of MAE.

    Half of the features encode the column (width first, as in the published weights), half
    the row; each half is sines, then cosines, of frequencies from 1 down to 1/10000.

    Args:
        dim: features, a multiple of 4.
        grid: patches along one side.

    Returns:
        [1, 1 + grid * grid, dim]; the first row, for [CLS], is zero.

    References: He et al. 2022 (MAE), appendix A.1.
    """
    frequency = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(grid**2), grid)
    angles = [np.outer(place, frequency) for place in (column, row)]
    features = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, dim)), features])[None].astype(np.float32)


def resize(pos_embed: np.ndarray, grid: int) -> np.ndarray:
    """Bicubic interpolation of a square grid of position embeddings, [CLS] untouched.

    Gives what torch's `interpolate(mode="bicubic", align_corners=False)` gives (a = -0.75,
    no anti-aliasing); `jax.image.resize` has a = -0.5 and differs by up to 0.3.

    Args:
        pos_embed: [1, 1 + old * old, dim].
        grid: new side in patches.

    Returns:
        [1, 1 + grid * grid, dim].

    Raises:
        UserError: the embeddings are not of [CLS] and a square grid.
    """
    rows = pos_embed.shape[1] if pos_embed.ndim == 3 else 0
    old = round(max(rows - 1, 0) ** 0.5)
    if old == 0 or rows != 1 + old * old:
        raise UserError(
            f"position embeddings of shape {pos_embed.shape} are not [CLS] and a square grid"
        )
    weights = _cubic_weights(old, grid)
    square = pos_embed[0, 1:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("yr,xc,rcd->yxd", weights, weights, square).reshape(grid * grid, -1)
    return np.concatenate([pos_embed[0, :1], resized])[None].astype(np.float32)


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old] weights of one axis: cubic convolution with a = -0.75, edges repeated."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        x = np.abs(centre - (first + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), column), np.where(x <= 1, near, far))
    return weights
