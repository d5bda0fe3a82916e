"""Recordings at the rate that a model hears."""

from __future__ import annotations

import numpy as np
import pytest

from adaptrain.tasks.sound import Sound


@pytest.mark.parametrize(("rate", "other"), [(8000, 16000), (44100, 16000), (16000, 16000)])
def test_a_tone_stays_a_tone_at_another_rate(rate, other):
    time = np.arange(rate) / rate
    found = Sound(np.sin(2 * np.pi * 440 * time).astype(np.float32), rate).at(other)
    assert found.dtype == np.float32
    assert len(found) == other
    expected = np.sin(2 * np.pi * 440 * np.arange(other) / other)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-3)


def test_a_pitch_that_a_lower_rate_cannot_have_is_removed():
    time = np.arange(44100) / 44100
    found = Sound(np.sin(2 * np.pi * 12000 * time).astype(np.float32), 44100).at(16000)
    assert np.abs(found[500:-500]).max() < 0.01  # at 16 kHz it would come back as 4 kHz
