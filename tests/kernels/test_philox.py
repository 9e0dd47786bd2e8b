"""The random bits of dropout: Random123's known answers, and the documented layout recomputed with plain integers."""

import numpy as np
import pytest

from bpgpu.kernels import philox


def scalar_philox(counter, key):
    """Philox4x32-10 of Salmon et al. 2011, one counter, Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


# counter, key, words: the file kat_vectors of Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert scalar_philox(counter, key) == words
    out = philox.philox4x32(np.array([counter, counter], dtype=np.uint32).T, key)
    assert out.dtype == np.uint32
    assert out.T.tolist() == [list(words)] * 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (7, 1), (2, 6)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "where",
    [
        {"seed": 0, "epoch": 0, "step": 0, "layer": 1},
        {"seed": 0x0123456789ABCDEF, "epoch": 3, "step": 1000, "layer": 2},
        {"seed": 2**64 - 1, "epoch": 2**32 - 1, "step": 2**32 - 1, "layer": 9},
    ],
)
def test_keep_mask_layout(shape, rate, where):
    key = (where["seed"] % 2**32, where["seed"] // 2**32)
    expected = []
    for i in range(shape[0] * shape[1]):
        words = scalar_philox((i // 4, where["step"], where["epoch"], where["layer"]), key)
        expected.append(words[i % 4] >= rate * 2**32)
    mask = philox.keep_mask(shape, rate, **where)
    assert mask.dtype == bool
    assert mask.ravel().tolist() == expected
    assert mask.shape == shape


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.95])
def test_share_of_elements_kept(rate):
    mask = philox.keep_mask((400, 500), rate, seed=5, epoch=0, step=0, layer=1)
    five_sigma = 5 * (rate * (1 - rate) / mask.size) ** 0.5
    assert abs(mask.mean() - (1 - rate)) <= five_sigma


def test_rate_just_below_one():
    mask = philox.keep_mask((5, 5), 1 - 2**-40, seed=0, epoch=0, step=0, layer=1)
    assert not mask.any()


def test_each_coordinate_changes_the_mask():
    base = {"seed": 1, "epoch": 0, "step": 0, "layer": 1}
    masks = [philox.keep_mask((8, 8), 0.5, **base)]
    for name, other in {"seed": 1 + 2**32, "epoch": 1, "step": 1, "layer": 2}.items():
        masks.append(philox.keep_mask((8, 8), 0.5, **base | {name: other}))
    assert len({mask.tobytes() for mask in masks}) == 5
