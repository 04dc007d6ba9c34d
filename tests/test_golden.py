"""Results have the bits that golden.json says, which are those of every platform."""

import json

import golden
import numpy as np
import pytest
from cases import everywhere

import fastnorm

SUMS = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize("norm", golden.ALL, ids=lambda norm: norm.id)
def test_the_bits_are_those_of_every_platform(norm):
    for isa, threads in everywhere((1, 2)):
        differ = [name for name, found in golden.sums(norm).items() if SUMS.get(name) != found]
        assert not differ, (isa, threads)


@pytest.mark.parametrize("name", fastnorm.activations.NAMES)
def test_activations_have_the_bits_of_every_platform(name):
    for isa, threads in everywhere((1, 2)):
        found = golden.sums_of_activation(name)
        assert found == {key: SUMS.get(key) for key in found}, (isa, threads)


def test_there_is_a_sum_for_each_case_and_they_can_be_made_again():
    assert golden.as_text() == golden.FILE.read_text()


def test_the_inputs_are_the_same_everywhere():
    """The first integers of SplitMix64 as published, and numbers that their dtype holds."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    numbers = golden.Numbers(24)
    assert [int(i) for i in (*numbers.integers(3), *numbers.integers(1))] == first
    for dtype, digits in golden.DIGITS.items():
        exact = golden.Numbers(digits).array((5, 6, 70), np.float64)
        np.testing.assert_array_equal(exact.astype(dtype).astype(np.float64), exact)
        assert exact.min() < -2
        assert exact.max() > 3
