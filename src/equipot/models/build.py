"""The one place where a configuration and the data's statistics become a model."""

import ase.data
import torch

from equipot.config.model import AllegroConfig, NequIPConfig
from equipot.models.allegro import Allegro
from equipot.models.nequip import NequIP
from equipot.models.potential import Potential
from equipot.models.terms import ZBL, SpeciesScaleShift


def build_potential(
    config: NequIPConfig | AllegroConfig,
    species: list[str],
    avg_num_neighbors: float,
    atomic_energies: list[float],
    force_rms: float,
) -> Potential:
    """An untrained potential; its weights come from torch's global random state.

    ``species``: chemical symbols in the order of the atom types; ``avg_num_neighbors``: mean number of
    neighbors within the cutoff; ``atomic_energies`` (eV): the shift of each species; ``force_rms`` (eV/Å):
    becomes the scale, times 1 Å, where the configuration asks for ``force_rms``.
    """
    # An average below one neighbor would amplify messages without bound.
    num_neighbors = max(avg_num_neighbors, 1.0)
    network = _NETWORKS[config.type](config, len(species), num_neighbors)
    network.to(getattr(torch, config.dtype))
    scale = force_rms if config.scale == "force_rms" else config.scale
    scale_shift = SpeciesScaleShift(
        [scale] * len(species), list(atomic_energies), trainable=config.trainable_scale_shift
    )
    zbl = ZBL([ase.data.atomic_numbers[symbol] for symbol in species]) if config.zbl else None
    return Potential(network, species, scale_shift, zbl)


def _nequip(config: NequIPConfig, num_species: int, num_neighbors: float) -> NequIP:
    return NequIP(
        num_species=num_species,
        cutoff=config.cutoff,
        avg_num_neighbors=num_neighbors,
        l_max=config.l_max,
        parity=config.parity,
        layers=config.layers,
        channels=config.channels,
        num_bessel=config.num_bessel,
        polynomial_cutoff=config.polynomial_cutoff,
        radial_hidden=config.radial_hidden,
    )


def _allegro(config: AllegroConfig, num_species: int, num_neighbors: float) -> Allegro:
    return Allegro(
        num_species=num_species,
        cutoff=config.cutoff,
        avg_num_neighbors=num_neighbors,
        l_max=config.l_max,
        parity=config.parity,
        layers=config.layers,
        scalar_channels=config.scalar_channels,
        tensor_channels=config.tensor_channels,
        num_bessel=config.num_bessel,
        polynomial_cutoff=config.polynomial_cutoff,
        two_body_hidden=config.two_body_hidden,
        latent_hidden=config.latent_hidden,
        readout_hidden=config.readout_hidden,
    )


_NETWORKS = {"nequip": _nequip, "allegro": _allegro}
