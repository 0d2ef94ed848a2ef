"""The form of embeddings: cut, scaled, and in fewer bits by sentence-transformers' own function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings
from torch.nn.functional import normalize

from virtue_pl.embedder.vectors import PRECISIONS, convert_vectors
from virtue_pl.types import VirtueError

UNIT = normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_cut_embeddings_have_length_one_unless_that_is_not_wanted():
    torch.testing.assert_close(convert_vectors(UNIT, 5), normalize(UNIT[:, :5], dim=-1))
    torch.testing.assert_close(convert_vectors(UNIT, 5, unit=False), UNIT[:, :5])
    torch.testing.assert_close(convert_vectors(UNIT, 16), UNIT, rtol=0, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [None, 8])
def test_every_precision_is_that_of_sentence_transformers_whatever_the_batch(precision, dim):
    found = convert_vectors(UNIT, dim, precision=precision, calibration=UNIT)
    exact = convert_vectors(UNIT, dim).numpy()
    if precision.startswith("float"):
        np.testing.assert_allclose(found, exact, atol=1e-3)
    else:
        np.testing.assert_array_equal(
            found, quantize_embeddings(exact, precision, calibration_embeddings=UNIT.numpy()[:, :dim])
        )
    first = convert_vectors(UNIT[:1], dim, precision=precision, calibration=UNIT)
    np.testing.assert_array_equal(first, found[:1])


def test_mistakes_are_one_line():
    for options, told in [
        ({"truncate_dim": 17}, "truncate_dim is 17, expected from 1 to the embedding's 16"),
        ({"precision": "int4"}, "precision is 'int4', expected one of float32"),
        ({"precision": "int8"}, "without `calibration`"),
        ({"precision": "uint8", "calibration": UNIT[:1]}, "calibration of shape"),
    ]:
        with pytest.raises(VirtueError, match=told):
            convert_vectors(UNIT, **options)
