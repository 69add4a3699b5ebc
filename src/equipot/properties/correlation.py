"""Spectral densities of signals along a trajectory, by their autocorrelation."""

import numpy as np
from ase import units
from numpy.typing import NDArray

LIGHT = units._c * 1e-13  # cm/fs: wavenumber × this is a frequency in 1/fs
_FWHM = np.sqrt(8 * np.log(2))  # of a Gaussian, in standard deviations
_POINTS = 4  # at least, within a width
_REACH = 7.0  # standard deviations of the window, beyond which it is 2e-11


def spectral_density(signal: NDArray, interval: float, resolution: float) -> tuple[NDArray, NDArray]:
    """(K,) cm⁻¹ from 0 on, (K,) per cm⁻¹: of a signal (F, ...), summed over its components.

    Its integral is the variance (Wiener and Khinchin). ``interval`` (fs) lies between frames; the
    autocorrelation is multiplied by a Gaussian, so that lines become Gaussians of full width ``resolution``
    (cm⁻¹) at half maximum with the same area. Sums over pairs of frames are divided by F whatever their
    distance, which keeps densities positive and adds a width of about 0.9 / (c F interval).
    """
    rows = signal.reshape(len(signal), -1)
    rows = rows - rows.mean(axis=0)
    size = 1 << (2 * len(rows) - 1).bit_length()
    power = np.zeros(size // 2 + 1)
    for column in rows.T:  # one at a time: memory
        power += np.abs(np.fft.rfft(column, size)) ** 2
    width = _FWHM / (2 * np.pi * LIGHT * resolution)  # fs, standard deviation of the window
    reach = min(len(rows), int(_REACH * width / interval) + 1)
    window = np.exp(-0.5 * (interval * np.arange(reach) / width) ** 2)
    windowed = np.fft.irfft(power, size)[:reach] / len(rows) * window
    points = max(2 * reach, int(_POINTS / (LIGHT * interval * resolution)))
    length = 1 << (points - 1).bit_length()
    density = 2 * LIGHT * interval * (2 * np.fft.rfft(windowed, length).real - windowed[0])
    return np.fft.rfftfreq(length, interval) / LIGHT, density


def density_of_rate(signal: NDArray, interval: float, resolution: float) -> tuple[NDArray, NDArray]:
    """As `spectral_density`, of the signal's time derivative, in ASE's unit of time.

    That of differences from frame to frame, with what these change, (sin(ωτ/2) / (ωτ/2))², taken out.
    """
    rates = np.diff(signal, axis=0) / (interval * units.fs)
    waves, density = spectral_density(rates, interval, resolution)
    return waves, density / np.sinc(LIGHT * interval * waves) ** 2
