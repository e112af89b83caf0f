"""Counter-based random numbers: they depend on the sample, not on the worker.

Every draw is a hash of (seed, purpose, epoch, row), so a crop, a captioner or a position in the shuffled order is the same in
every process, in any order of computation, and after any number of restarts. The hash applies splitmix64 once per component
and is vectorised over rows. It uses no library's generator, so it does not change with a library's version.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(seed: int, purpose: str, *parts: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """64 random bits for each element of the broadcast `parts` (integers: epoch, row, ...)."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GOLDEN)
        state = _mix(state ^ np.uint64(zlib.crc32(purpose.encode())))
        for part in parts:
            state = _mix(state + _GOLDEN + np.asarray(part).astype(np.int64).view(np.uint64) * _GOLDEN)
    return state


def uniform(seed: int, purpose: str, *parts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each element of the broadcast `parts`."""
    return (hashed(seed, purpose, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choice(n: npt.ArrayLike, seed: int, purpose: str, *parts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """A random integer in 0..n-1 for each element of the broadcast `parts`."""
    drawn: npt.NDArray[np.int64] = np.floor(uniform(seed, purpose, *parts) * np.asarray(n)).astype(np.int64)
    return drawn


def permutation(n: int, seed: int, purpose: str, *parts: int) -> npt.NDArray[np.int64]:
    """A random permutation of 0..n-1."""
    return np.argsort(hashed(seed, purpose, *parts, np.arange(n)), kind="stable").astype(np.int64)


def generator(seed: int, purpose: str, *parts: int) -> np.random.Generator:
    """A NumPy generator for one sample, for more than a few scalar draws."""
    return np.random.Generator(np.random.Philox(key=int(hashed(seed, purpose, *parts)[0])))
