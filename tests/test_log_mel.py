"""Log-mel frames: the spectrum is scipy's, the bands are a partition, padding changes nothing."""

import numpy as np
import pytest
import torch
from scipy.signal import stft

from ssl_nb.data import Ragged
from ssl_nb.tokens import LogMel, mel_filters


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("window, hop, length", [(256, 160, 4000), (128, 64, 1000), (200, 160, 801)])
def test_frames_are_those_of_scipy(window, hop, length):
    x, mel = noise(3, length), LogMel(8000, window=window, hop=hop, bands=16)
    *_, spectrum = stft(x.double().numpy(), 8000, nperseg=window, noverlap=window - hop, boundary="zeros", padded=True)
    frames = -(-length // hop)
    energy = np.abs(spectrum[..., :frames] * torch.hann_window(window).sum().item()) ** 2
    expected = np.log(energy.transpose(0, 2, 1) @ mel.filters.numpy() + mel.floor)
    assert mel(x).x.shape == (3, frames, 16)
    np.testing.assert_allclose(mel(x).x.numpy(), expected, atol=2e-3)


def test_triangles_add_up_to_one_between_the_first_and_the_last_center():
    filters = mel_filters(24, 512, 8000)
    peaks = filters.argmax(0)
    inside = filters[peaks[0] + 1 : peaks[-1]]
    torch.testing.assert_close(inside.sum(1), torch.ones(len(inside)))
    assert (peaks.diff() > 0).all() and (filters >= 0).all() and (filters <= 1).all()


@pytest.mark.parametrize("hertz", [300, 1000, 2500])
def test_a_tone_is_loudest_in_the_band_around_it(hertz):
    mel = LogMel(8000)
    tone = torch.sin(2 * torch.pi * hertz * torch.arange(4000) / 8000)[None]
    center = 2595 * np.log10(1 + hertz / 700) / (2595 * np.log10(1 + 4000 / 700)) * 33 - 1
    assert abs(mel(tone).x[0, 10].argmax().item() - center) <= 1


def test_padding_changes_no_token_and_is_marked():
    rows, mel = [noise(700), noise(1000, seed=1), noise(1, seed=2)], LogMel(8000)
    both = mel(Ragged.of(rows))
    assert both.real.sum(1).tolist() == [5, 7, 1] and both.grid == (7,)
    for i, row in enumerate(rows):
        torch.testing.assert_close(both.x[i][both.real[i]], mel(row[None]).x[0], rtol=1e-3, atol=1e-3)


def test_mean_and_std_normalize_and_silence_has_the_floor():
    silence = torch.zeros(2, 500)
    plain, scaled = LogMel(8000, bands=2), LogMel(8000, bands=2, mean=(1.0, 2.0), std=(2.0, 4.0))
    torch.testing.assert_close(plain(silence).x, torch.full((2, 4, 2), float(np.log(1e-5))))
    expected = (plain(noise(2, 500)).x - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0])
    torch.testing.assert_close(scaled(noise(2, 500)).x, expected)


@pytest.mark.parametrize("call, words", [
    (lambda: LogMel(bands=200), "no frequency"),
    (lambda: LogMel(window=255), "even window"),
    (lambda: LogMel(hop=300), "hop is 300"),
    (lambda: LogMel()(torch.zeros(2, 100, dtype=torch.int16)), "int16"),
    (lambda: LogMel()(torch.zeros(2, 1, 100)), "floats")])  # fmt: skip
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
