"""What every model is put through: small networks in float64, and structures of every boundary kind."""

import ase
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipot.config import AllegroConfig, AllegroDenseConfig, NequIPConfig
from equipot.data import graph_from_atoms
from equipot.models.build import build_potential

SPECIES = ["H", "C", "O"]
CUTOFF = 3.5
_COMMON = {"cutoff": CUTOFF, "dtype": "float64"}
_NEQUIP = {"type": "nequip", "layers": 3, "channels": 4, "radial_hidden": (8,), **_COMMON}
_ALLEGRO = {
    "type": "allegro",
    "layers": 2,
    "scalar_channels": 8,
    "channels": 4,
    "two_body_hidden": (8,),
    "latent_hidden": (8,),
    "readout_hidden": (8,),
    **_COMMON,
}
PAIR_CUTOFFS = {"H-H": 2.1, "H-O": 2.6, "O-H": 3.1, "C-H": 3.3}
MODELS = {
    "nequip": NequIPConfig(**_NEQUIP),
    "nequip-no-parity": NequIPConfig(**_NEQUIP, parity=False),
    "nequip-radial-network": NequIPConfig(**_NEQUIP, radial_intervals=None),
    "nequip-l3-channels-per-l": NequIPConfig(**_NEQUIP | {"channels": (5, 4, 3, 2), "l_max": 3}),
    "nequip-zbl": NequIPConfig(**_NEQUIP, zbl=True),
    "nequip-l0-one-layer": NequIPConfig(**_NEQUIP | {"l_max": 0, "layers": 1}),
    "nequip-rotations-shared-bessel": NequIPConfig(
        **_NEQUIP, parity="ignored", self_connection="shared", trainable_bessel=True, embedding_channels=6
    ),
    "nequip-xplor-biases": NequIPConfig(**_NEQUIP, xplor_start=2.95, biases=True),
    "nequip-xplor-radial-network-solid": NequIPConfig(
        **_NEQUIP,
        layer_channels=((5, 4, 3), (4, 3), (6,)),
        xplor_start=3.05,
        radial_intervals=None,
        normalize_harmonics=False,
    ),
    "nequip-no-first-connection-factors-readout": NequIPConfig(
        **_NEQUIP, first_self_connection=False, element_factors=True, readout_hidden=(6, 5)
    ),
    "nequip-pair-cutoffs-zbl": NequIPConfig(**_NEQUIP, pair_cutoffs=PAIR_CUTOFFS, zbl="cutoff", biases=True),
    "nequip-pair-cutoffs-xplor": NequIPConfig(
        **_NEQUIP, pair_cutoffs=PAIR_CUTOFFS, xplor_start=2.95, radial_intervals=None, element_factors=True
    ),
    "allegro": AllegroConfig(**_ALLEGRO),
    "allegro-no-parity-zbl": AllegroConfig(**_ALLEGRO, parity=False, zbl=True),
    "allegro-pair-cutoffs": AllegroConfig(**_ALLEGRO, pair_cutoffs=PAIR_CUTOFFS),
    "allegro-dense": AllegroDenseConfig(**_ALLEGRO | {"type": "allegro_dense"}),
    "allegro-dense-three-layers": AllegroDenseConfig(
        **_ALLEGRO
        | {"type": "allegro_dense", "layers": 3, "parity": False, "pair_channels": 7, "two_body_hidden": ()},
        pair_cutoffs=PAIR_CUTOFFS,
    ),
    "allegro-l3-three-layers": AllegroConfig(**_ALLEGRO | {"l_max": 3, "layers": 3}),
}


# These have two levels of theory, and are put through everything at the second one.
TWO_LEVELS = ("nequip", "nequip-xplor-biases", "allegro")
SHIFT = [-13.6, -1030.0, -2040.0]


class AtSecondLevel(nn.Module):
    """A potential of two levels with the contract of one: every atom is of the second level."""

    def __init__(self, potential: nn.Module):
        super().__init__()
        self.potential = potential
        self.network, self.scale_shift = potential.network, potential.scale_shift
        self.num_exchanges: int = potential.num_exchanges

    def forward(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, owned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.potential(edge_vec, edge_index, atom_types, owned, torch.ones_like(atom_types))


@pytest.fixture(params=[*MODELS, *(f"{name} with two levels" for name in TWO_LEVELS)], scope="module")
def potential(request):
    """An untrained model of each kind; reference energies far from zero, so that a lost shift shows."""
    torch.manual_seed(7)
    name = request.param.removesuffix(" with two levels")
    levels = {} if name == request.param else {"levels": ["pbe", "pbe0"]}
    shifts = [[energy - 5.0 for energy in SHIFT], SHIFT] if levels else SHIFT
    potential = build_potential(MODELS[name], SPECIES, 6.0, shifts, 1.3, **levels).eval()
    for key, weight in potential.named_parameters():
        if key.endswith((".bias", ".factors")):  # which are zero or one at first
            nn.init.normal_(weight)
    return AtSecondLevel(potential).eval() if levels else potential


def _random_atoms(number: int, box: np.ndarray, seed: int, pbc) -> ase.Atoms:
    """Atoms at least 0.9 Å apart, images included."""
    generator = np.random.default_rng(seed)
    atoms = ase.Atoms(cell=box, pbc=pbc)
    while len(atoms) < number:
        trial = atoms.copy()
        trial.append(ase.Atom(generator.choice(SPECIES), generator.random(3) @ box))
        distances = trial.get_all_distances(mic=True)[-1, :-1]
        if (distances > 0.9).all():
            atoms = trial
    return atoms


@pytest.fixture(scope="session")
def structures() -> dict[str, ase.Atoms]:
    """A molecule, crystals that are smaller than the cutoff, a slab and a chain."""
    triclinic = np.array([[2.6, 0.0, 0.0], [0.7, 2.4, 0.0], [-0.5, 0.6, 2.8]])
    return {
        "molecule": _random_atoms(7, np.eye(3) * 3.0, 1, False),
        "crystal with self-images": _random_atoms(2, triclinic, 2, True),
        "slab": _random_atoms(4, np.diag([3.0, 3.2, 6.0]), 3, (True, True, False)),
        "chain": _random_atoms(3, np.diag([2.9, 5.0, 5.0]), 4, (True, False, False)),
    }


@pytest.fixture(scope="session")
def graphs(structures):
    """The structures as graphs."""
    return {name: graph_from_atoms(atoms, SPECIES, CUTOFF) for name, atoms in structures.items()}
