"""Units, files and graphs: what everything stands on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from equipot import machine
from equipot.data.store.layout import CELL, ISOLATED, MARKS, PBC, known_flags, stored_labels
from equipot.errors import ConfigError
from equipot.files import atomic_write
from equipot.graph import AtomicGraph, Label, Labels, collate, edge_vectors, volume
from equipot.quantities import ENERGY, QUANTITIES
from equipot.units import (
    EV_A3_TO_GPA,
    GPA,
    energy_factor,
    known_unit,
    length_factor,
    stress_to_voigt,
    unit_factor,
    voigt_to_stress,
)


def test_units():
    assert energy_factor("kcal/mol") == pytest.approx(0.0433641, rel=1e-5)  # CODATA
    assert energy_factor("Hartree") == pytest.approx(27.211386, rel=1e-6)
    assert length_factor("Bohr") == pytest.approx(0.529177, rel=1e-6)
    assert pytest.approx(160.21766, rel=1e-6) == EV_A3_TO_GPA
    with pytest.raises(ConfigError, match=r"Unknown energy unit 'ev'.*Did you mean 'eV'"):
        energy_factor("ev")


def test_units_of_forces_and_stress_have_a_sign_and_are_those_of_ase():
    import ase.units as au

    assert unit_factor("Hartree/Bohr", (1, -1), "forces") == pytest.approx(au.Hartree / au.Bohr, rel=1e-12)
    assert unit_factor("-kcal/mol/Ang", (1, -1), "forces") == pytest.approx(-au.kcal / au.mol, rel=1e-12)
    sizes = {"kbar": 0.1 * au.GPa, "bar": au.bar, "Pa": au.Pascal, "Hartree/Bohr^3": au.Hartree / au.Bohr**3}
    for name, size in sizes.items():
        assert unit_factor(name, (1, -3), "stress") == pytest.approx(size, rel=1e-12)
        assert unit_factor(f"-{name}", (1, -3), "stress") == pytest.approx(-size, rel=1e-12)
    with pytest.raises(ConfigError, match=r"Unknown stress unit '-kB'; known: GPa, .* Did you mean '-kbar'"):
        unit_factor("-kB", (1, -3), "stress")
    with pytest.raises(ConfigError, match=r"an energy: .* as -Hartree/Ang or -Hartree/Bohr"):
        unit_factor("-Hartree", (1, -1), "forces")
    with pytest.raises(ConfigError, match=r"as kcal/mol/Ang\^3 or"):
        unit_factor("kcal/mol", (1, -3), "stress")
    with pytest.raises(ConfigError, match=r"Unknown energy unit '-eV'"):
        energy_factor("-eV")


@pytest.mark.parametrize(
    ("text", "powers", "unit"),
    [
        ("hartree", (1, 0), "Hartree"), ("Ha", (1, 0), "Hartree"), ("KCAL/MOL", (1, 0), "kcal/mol"),
        ("angstrom", (0, 1), "Ang"), ("Å", (0, 1), "Ang"), ("a.u.", (0, 1), "Bohr"),
        ("a.u.", (1, -1), "Hartree/Bohr"), ("a.u.", (1, -3), "Hartree/Bohr^3"),
        ("eV/A", (1, -1), "eV/Ang"), ("Ha/bohr", (1, -1), "Hartree/Bohr"),
        ("eV/Å³", (1, -3), "eV/Ang^3"), ("ev/angstrom**3", (1, -3), "eV/Ang^3"), ("kB", (1, -3), "kbar"),
        ("GPa", (1, -1), None), ("parsec", (0, 1), None),
    ],
)  # fmt: skip
def test_units_as_files_spell_them(text, powers, unit):
    assert known_unit(text, powers) == unit


def test_units_are_those_of_ase():
    """They are written out as numbers, so that the command line need not load ASE."""
    import ase.units

    assert {name: energy_factor(name) for name in ("Hartree", "Rydberg", "kcal/mol", "kJ/mol")} == {
        "Hartree": ase.units.Hartree,
        "Rydberg": ase.units.Rydberg,
        "kcal/mol": ase.units.kcal / ase.units.mol,
        "kJ/mol": ase.units.kJ / ase.units.mol,
    }
    assert (length_factor("Bohr"), length_factor("nm")) == (ase.units.Bohr, ase.units.nm)
    assert ase.units.GPa == GPA


def test_every_quantity_has_a_flag_of_its_own():
    """Stores know labels by it."""
    others = CELL | ISOLATED | sum(PBC) | MARKS
    flags = [quantity.flag for quantity in QUANTITIES.values()]
    known = known_flags(stored_labels())
    assert sum(flags) | others == known and known.bit_count() == len(flags) + others.bit_count()
    assert [QUANTITIES[name].flag for name in ("energy", "forces", "stress")] == [
        1,
        2,
        4,
    ]  # of files there are


def test_a_quantity_that_is_none_of_the_three():
    """A vector of each structure: read in other shapes, converted, chosen and divided as declared."""
    dipole = replace(ENERGY, name="dipole", shape=(3,), powers=(0, 1), normalised=False)
    assert dipole.read(np.ones((1, 3)), 7).shape == (3,) and dipole.read(np.ones(2), 7) is None
    assert dipole.fits((3,), 7) and not dipole.fits((7, 3), 7)
    assert dipole.expected(7) == "have shape (3,)" and dipole.looks_like == "one vector"
    assert dipole.factor(27.2, 0.5) == 0.5 and dipole.components == 3
    assert dipole.error(3.0, 1.0, 2) == 2.0 and ENERGY.error(3.0, 1.0, 2) == 1.0
    assert replace(dipole, powers=(1, -2)).factor(3.0, 2.0) == 0.75


def test_voigt_is_ase_order():
    voigt = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # xx yy zz yz xz xy
    full = voigt_to_stress(voigt)
    assert full[1, 2] == full[2, 1] == 4 and full[0, 2] == 5 and full[0, 1] == 6
    from ase.stress import voigt_6_to_full_3x3_stress

    assert (full == voigt_6_to_full_3x3_stress(voigt)).all()
    assert (stress_to_voigt(full) == voigt).all()
    batch = torch.from_numpy(np.stack([full, 2 * full]))
    assert torch.equal(stress_to_voigt(batch)[1], 2 * torch.from_numpy(voigt))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "model.pt"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def graph(labels: Labels, periodic: bool) -> AtomicGraph:
    return AtomicGraph(
        positions=torch.tensor([[0.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64),
        cell=torch.diag(torch.tensor([3.0, 4.0, -5.0], dtype=torch.float64))[None],
        pbc=torch.tensor([[True, True, periodic]]),
        atom_types=torch.tensor([0, 1]),
        structure=torch.zeros(2, dtype=torch.int64),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        edge_shift=torch.tensor([[0, 0, 0], [1, 0, 0]]),
        labels=labels,
    )


def test_edge_vectors_and_volume():
    one = graph(Labels(), True)
    assert edge_vectors(one).tolist() == [[1, 0, 0], [2, 0, 0]]
    # A left-handed cell has a positive volume; an open direction means none.
    assert volume(collate([one, graph(Labels(), False)])).tolist() == [60.0, 0.0]


def test_collate_masks_missing_labels():
    energy = Label(torch.tensor([2.5], dtype=torch.float64), torch.tensor([True]))
    joined = collate([graph(Labels(), True), graph(Labels({"energy": energy}), True)])
    assert joined.labels.energy.value.tolist() == [0.0, 2.5]
    assert joined.labels.energy.mask.tolist() == [False, True]
    assert joined.labels.forces is None
    assert joined.edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    assert joined.structure.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "name", "flags", "kinds"),
    [
        (
            "model\t\t: 85\nmodel name\t: Xeon\nflags\t\t: fma  avx2\n\nmodel\t\t: 85\nmodel name\t: Xeon\n",
            "Xeon",
            "fma  avx2",
            "flags : fma avx2; model : 85",
        ),
        (
            "Features\t: fp asimd\nCPU part\t: 0xd0c\n",
            None,
            "fp asimd",
            "CPU part : 0xd0c; Features : fp asimd",
        ),
    ],
)
def test_the_processor_is_read_on_x86_and_arm(monkeypatch, text, name, flags, kinds):
    monkeypatch.setattr(machine, "_lines", lambda file: text.splitlines())
    assert machine.processor_flags() == flags and machine.processor_kinds() == kinds
    assert machine.processor_name() == (name or machine.platform.processor() or machine.platform.machine())


def test_memory_that_is_free(monkeypatch):
    monkeypatch.setattr(machine, "_lines", lambda file: ["MemTotal: 9 kB", "MemAvailable:     2048 kB"])
    assert machine.available_memory() == 2 * 2**20
    monkeypatch.setattr(machine, "_lines", lambda file: [])
    assert machine.available_memory() is None
