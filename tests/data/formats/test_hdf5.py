"""HDF5 in the layouts that nequip, SPICE, ANI-1x and MACE document."""

import numpy as np
import pytest

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data import read_frames

h5py = pytest.importorskip("h5py")


@pytest.fixture
def store(tmp_path):
    """Function (nested dict of groups and datasets) -> path of the file."""

    def write(content, name="a.h5"):
        def fill(group, items):
            for key, value in items.items():
                if isinstance(value, dict):
                    fill(group.create_group(key), value)
                else:
                    group[key] = value

        with h5py.File(tmp_path / name, "w") as file:
            fill(file, content)
        return tmp_path / name

    return write


def arrays(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def test_nequip_groups_by_number_of_atoms(store):
    """nequip's HDF5Dataset: a group for each size, arrays as long as there are samples."""
    groups = {
        str(n): {"atomic_numbers": np.full((600, n), n), "pos": arrays(600, n, 3), "energy": arrays(600),
                 "forces": arrays(600, n, 3)} for n in (2, 3)
    }  # fmt: skip
    frames = read_frames(store(groups))
    assert len(frames) == 1200  # more than one block each
    for n, start in ((2, 0), (3, 600)):
        for i in (0, 511, 512, 599):
            frame, group = frames[start + i], groups[str(n)]
            assert frame.atomic_numbers.tolist() == [n] * n
            assert frame.positions.tolist() == group["pos"][i].tolist()
            assert (frame.energy, frame.forces.tolist()) == (group["energy"][i], group["forces"][i].tolist())


def test_spice_gradient_is_offered_as_forces(store, failing):
    """SPICE: atomic_numbers (N,), conformations (F, N, 3) in Bohr, dft_total_energy, dft_total_gradient."""
    group = {"atomic_numbers": [8, 1, 1], "conformations": arrays(4, 3, 3), "dft_total_energy": arrays(4),
             "dft_total_gradient": arrays(4, 3, 3), "smiles": b"O", "subset": b"water"}  # fmt: skip
    path = store({"water": group})
    units = UnitsConfig(energy="Hartree", length="Bohr")
    frames = read_frames(path, LabelsConfig(energy="dft_total_energy", forces="-dft_total_gradient"), units)
    # 8 digits of Hartree and Bohr
    np.testing.assert_allclose(frames[3].positions, group["conformations"][3] * 0.52917721, rtol=3e-8)
    np.testing.assert_allclose(
        frames[3].forces, -group["dft_total_gradient"][3] * 27.211386 / 0.52917721, rtol=1e-7
    )
    message = failing(path, LabelsConfig(energy="dft_total_energy", forces="dft_total_gradient"), units)
    assert "Did you mean '-dft_total_gradient'?" in message


def test_ani(store):
    """ANI-1x: group for each formula; ANI-1 has species as text in nested groups."""
    group = {"coordinates": arrays(2, 3, 3), "wb97x_dz.energy": arrays(2), "wb97x_dz.forces": arrays(2, 3, 3)}
    path = store({"H2O": {"atomic_numbers": np.array([8, 1, 1], dtype=np.uint8), **group},
                  "more": {"s01": {"species": np.array([b"O", b"H", b"H"]), **group}}})  # fmt: skip
    frames = read_frames(path, LabelsConfig(energy="wb97x_dz.energy", forces="wb97x_dz.forces"))
    assert [frame.atomic_numbers.tolist() for frame in frames] == [[8, 1, 1]] * 4
    assert frames[3].energy == group["wb97x_dz.energy"][1]


def test_mace_prepare_data(store):
    """config_batch_0/config_i with properties; "None" where there is nothing; weights."""

    def config(i):
        return {"atomic_numbers": [14, 14], "positions": arrays(2, 3) + i, "cell": 5.0 * np.eye(3),
                "pbc": [True] * 3, "weight": 1.0 + i, "config_type": "Default",
                "properties": {"energy": -1.0 * i, "forces": arrays(2, 3), "stress": "None"},
                "property_weights": {"energy": 0.5 * i, "forces": 1.0, "virials": 0.0}}  # fmt: skip

    frames = read_frames(store({"config_batch_0": {f"config_{i}": config(i) for i in range(11)}}))
    assert [frame.energy for frame in frames] == [None, *(-1.0 * i for i in range(1, 11))]  # 2 before 10
    assert [frame.label_weights.get("energy", 1.0) for frame in frames] == [0.5 * i for i in range(11)]
    assert all(frame.label_weights.keys() <= {"energy"} for frame in frames)
    assert [frame.weight for frame in frames] == [1.0 + i for i in range(11)]
    assert all(frame.pbc.all() and frame.cell[0, 0] == 5 and frame.stress is None for frame in frames)


def test_weights_of_labels_as_mace_wrote_them_at_first(store):
    group = {"atomic_numbers": [14], "positions": arrays(1, 3), "energy": -1.0, "forces": arrays(1, 3),
             "forces_weight": 0.0, "energy_weight": 3.0, "weight": 2.0}  # fmt: skip
    (frame,) = read_frames(store({"config_0": group}), required=())
    assert frame.forces is None and frame.weight == 2.0
    assert frame.label_weights == {"energy": 3.0, "forces": 0.0}


def test_one_cell_for_three_frames_is_not_taken_for_three_vectors(store):
    group = {"atomic_numbers": [14, 14], "positions": arrays(3, 2, 3), "cell": np.diag([5.0, 6, 7]),
             "pbc": [True, True, False], "energy": arrays(3)}  # fmt: skip
    for frame in read_frames(store({"a": group}), required=()):
        assert frame.cell.tolist() == group["cell"].tolist() and frame.pbc.tolist() == group["pbc"]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"pos": arrays(2, 3, 3), "types": [0, 0, 0]}, "no group holds both elements (atomic_numbers"),
        (
            {"pos": arrays(2, 3, 3), "z": [1, 1]},
            "group /a: elements of shape (2,) and positions of shape (2, 3,",
        ),
        ({"pos": arrays(2, 3, 2), "z": [1, 1, 1]}, "positions of shape (2, 3, 2) do not fit"),
        ({"pos": arrays(1, 1, 3), "species": np.array([b"Qq"])}, "'Qq' is not a chemical element"),
        ({"pos": arrays(2, 1, 3), "z": [1], "energy": arrays(2), "forces": arrays(2, 2, 3)}, "shape (1, 3)"),
        ({"pos": arrays(2, 1, 3), "z": [1], "energies": arrays(2)}, "Did you mean 'energies'?"),
    ],
)
def test_wrong_content(store, failing, group, words):
    path = store({"a": group})
    message = failing(path)
    assert message.startswith(str(path)) and words in message


def test_truncated(store, failing):
    path = store({"a": {"z": [1], "pos": arrays(100, 1, 3), "energy": arrays(100)}})
    path.write_bytes(path.read_bytes()[:-500])
    assert failing(path).startswith(f"{path}: not a complete HDF5 file")
