"""Each check finds its pathology in a set that is right but for it, and nothing in the set as it is."""

import re

import ase
import ase.io
import numpy as np
import pytest

from equipot.data.pool import Pool
from equipot.data.quality import check_files
from equipot.data.quality.check import check_sets
from equipot.data.quality.labels import check_forces, check_zeros
from equipot.data.quality.sets import check_duplicates
from equipot.data.quality.structures import check_copied_labels
from equipot.quantities import FIELD, declare, output
from equipot.units import EV_A3_TO_GPA


def test_right_set_has_no_findings_and_the_consistency_is_confirmed(copper, check):
    found = check(copper, notes=True)
    assert set(found) == {"forces and energies", "stress and energies", "stress and forces"}
    assert {severity for severity, _, _ in found.values()} == {"note"}
    assert all("agree" in message for _, message, _ in found.values())


# --- stress


def spoil_stress(copper, change):
    for atoms in copper:
        atoms.info["stress"] = change(atoms.info["stress"])


def test_stress_of_opposite_sign(copper, check):
    spoil_stress(copper, lambda stress: -stress)
    severity, message, frames = check(copper)["stress and energies"]
    assert severity == "error" and "of opposite sign" in message and len(frames) >= 25
    assert "opposite sign" in check(copper)["stress and forces"][1]


@pytest.mark.parametrize(("unit", "factor"), [("GPa", EV_A3_TO_GPA), ("kbar", 10 * EV_A3_TO_GPA)])
def test_stress_in_another_unit(copper, check, unit, factor):
    spoil_stress(copper, lambda stress: stress * factor)
    severity, message, _ = check(copper)["stress and energies"]
    assert severity == "error" and f"in {unit}, not eV/Å³" in message


def test_vasp_stress_as_it_stands_in_the_file(copper, check):
    """kbar, positive under compression, xx yy zz xy yz zx."""
    spoil_stress(copper, lambda s: -10 * EV_A3_TO_GPA * s[[0, 1, 2, 5, 3, 4]])
    _, message, _ = check(copper)["stress and energies"]
    assert "in kbar" in message and "of opposite sign" in message and "in the order xy yz xz" in message


@pytest.mark.parametrize("order", [(5, 4, 3), (4, 3, 5), (5, 3, 4)])
def test_shear_columns_in_another_order(copper, check, order):
    """Found by energies and, where no frames are strained copies, by forces."""
    names = {3: "yz", 4: "xz", 5: "xy"}
    words = " ".join(names[column] for column in order)
    spoil_stress(copper, lambda stress: stress[[0, 1, 2, *order]])
    _, message, _ = check(copper)["stress and energies"]
    assert f"in the order {words}, not yz xz xy" in message
    found = check(copper[50:], notes=True)
    assert "no frames are small strains" in found["stress and energies"][1]
    severity, message, _ = found["stress and forces"]
    assert severity == "error" and f"seem to be {words}, not yz xz xy" in message


def test_stress_with_a_constant_offset(copper, check):
    spoil_stress(copper, lambda s: s + np.array([1, 1, 1, 0, 0, 0]) * 2.5 / EV_A3_TO_GPA)
    severity, message, _ = check(copper)["stress and energies"]
    offset = float(re.search(r"With (\S+) GPa added to xx, yy and zz", message).group(1))
    # 0.1 for the trapezoidal rule over strains of 2 %
    assert severity == "warning" and offset == pytest.approx(-2.5, abs=0.11)
    assert "stress and forces" not in check(copper)


def test_extreme_pressure(copper, check):
    copper[4].info["stress"] = np.array([10.0, 10, 10, 0, 0, 0])
    severity, message, frames = check(copper)["pressure"]
    assert (severity, frames) == ("warning", [4]) and "1602 GPa" in message


# --- energies and forces


def test_gradients_instead_of_forces(copper, check):
    for atoms in copper:
        atoms.arrays["forces"] *= -1
    severity, message, _ = check(copper)["forces and energies"]
    assert severity == "error" and "wrong sign: they look like gradients" in message


def test_energies_and_forces_in_different_units(copper, check):
    for atoms in copper:
        atoms.info["energy"] *= 23.0605
    severity, message, _ = check(copper)["forces and energies"]
    assert severity == "error" and "Energies change by 2" in message and "kcal/mol and eV" in message
    assert "data.units.energy: kcal/mol (--energy-unit kcal/mol)" in message
    assert "data.units.forces: eV/Ang (--forces-unit eV/Ang)" in message


def test_length_unit(copper, check):
    for atoms in copper:
        atoms.set_cell(atoms.cell / 0.529177, scale_atoms=True)
    assert "Check data.units.length (--length-unit)." in check(copper)["units"][1]


def test_energy_outliers(copper, check):
    copper[7].info["energy"] += 30.0
    copper[40].info["energy"] -= 20.0
    severity, message, frames = check(copper)["energy outliers"]
    assert (severity, frames) == ("warning", [7, 40]) and "frame 7, is +3.7" in message


def test_net_force(copper, check):
    copper[33].arrays["forces"] += [0.0, 0.0, 0.02]
    severity, message, frames = check(copper)["net force"]
    assert (severity, frames) == ("warning", [33])
    assert "frame 33: 0.16 eV/Å in all, 20 meV/Å per atom" in message
    copper[33].arrays["forces"] += [0.0, 0.0, 2.0]
    assert check(copper)["net force"][0] == "error"


def test_zero_forces(copper, check):
    for atoms in copper:
        atoms.arrays["forces"] *= 0
    assert check(copper)["zero forces"][0] == "error"


def test_single_precision(copper, check):
    for atoms in copper:
        atoms.info["energy"] = float(np.float32(atoms.info["energy"] - 3e4))
    assert "rounded to 2 meV" in check(copper, notes=True)["precision"][1]


# --- structures


def test_duplicates(copper, check):
    severity, _, frames = check([*copper, copper[3].copy()])["duplicates"]
    assert (severity, frames) == ("warning", [3, 65])


def test_contradicting_duplicates(copper, check):
    copper.append(copper[3].copy())
    copper[-1].info["energy"] += 0.08
    severity, message, frames = check(copper)["contradiction"]
    assert (severity, frames) == ("error", [3, 65]) and "by up to 10 meV/atom" in message


def test_copied_labels(copper, check):
    copper[35].arrays["forces"] = copper[31].arrays["forces"].copy()
    severity, message, frames = check(copper)["copied labels"]
    assert (severity, frames) == ("error", [31, 35]) and "exactly the same forces" in message


def molecules(make_frame, values):
    """Frames of one bent molecule each, a little different, with these labels."""
    positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    return [
        make_frame("OHH", positions * (1 + 0.0005 * i), index=i, energy=-14.0 - 0.1 * i, **own)
        for i, own in enumerate(values)
    ]


def test_labels_of_outputs_may_be_alike_and_numbers_zero(make_frame):
    declare(output("born_charges", (3, 3), "e", True, symmetry="ij", rank=2))
    declare(output("gap", (), "eV", False))
    alike = {"born_charges": np.tile(np.eye(3), (3, 1, 1))}
    frames = molecules(make_frame, [alike | {"gap": gap} for gap in (0.0, 1.0, 0.0, 2.0)])
    assert check_copied_labels(frames) == [] and check_zeros(frames) == []
    frames[1].values["born_charges"] = np.zeros((3, 3, 3))
    [found] = check_zeros(frames)
    assert (found.severity, found.frames) == ("warning", (("", 1),))
    assert found.message.startswith("The born_charges of 1 frame (1) are exactly zero")


def test_a_dipole_may_be_zero_by_symmetry_of_the_structure(make_frame):
    """Two molecules with a center of inversion between them, whose atoms have no symmetry of their own."""
    declare(output("dipole", (3,), "e*Ang", False, rank=1))
    one = np.array([[1.4, 0.1, 0.2], [2.0, 0.9, 0.0], [1.9, -0.7, 0.5]])
    positions = np.concatenate([one, -one])
    numbers = "OHHOHH"
    frames = [make_frame(numbers, positions + 0.01 * i, index=i, dipole=np.zeros(3)) for i in range(2)]
    frames.append(
        make_frame(numbers, positions * np.repeat([[1.0], [1.1]], 3, axis=0), index=2, dipole=np.ones(3))
    )
    assert check_zeros(frames) == []
    frames[0].positions[0] += [0.1, 0.0, 0.0]
    [found] = check_zeros(frames)
    assert (found.check, found.frames) == ("zero dipole", (("", 0),))


def test_one_tensor_of_zeros_among_many_frames_is_found(make_frame):
    """Of more frames than a training looks at; band gaps may be zero."""
    declare(output("born_charges", (3, 3), "e", True, symmetry="ij", rank=2))
    charges = [np.tile((1 + 1e-4 * i) * np.eye(3), (3, 1, 1)) for i in range(1000)]
    charges[514] = np.zeros((3, 3, 3))
    pool = Pool.of(molecules(make_frame, [{"born_charges": values} for values in charges]))
    found = check_sets(pool, {}, {"training": pool, "validation": pool, "test": pool}, ["born_charges"])
    [zero] = [finding for finding in found if finding.check == "zero born_charges"]
    assert (zero.severity, zero.frames) == ("warning", (("", 514),))


def test_a_tensor_that_is_zero_everywhere_and_one_behind_symmetric_zeros_are_found(make_frame):
    """A dipole: of a whole file, and of one bent molecule after more linear ones than are looked at."""
    declare(output("dipole", (3,), "e*Ang", False, rank=1))
    [found] = check_zeros(molecules(make_frame, [{"dipole": np.zeros(3)}] * 5))
    assert found.message.startswith("The dipole of all 5 frames is zero")
    linear = np.array([[-1.16, 0.0, 0.0], [0.0, 0.0, 0.0], [1.16, 0.0, 0.0]])
    frames = [
        make_frame("OCO", linear * (1 + 0.0005 * i), index=i, energy=-20.0, dipole=np.zeros(3))
        for i in range(400)
    ]
    assert check_zeros(frames) == []
    charges = [{"dipole": np.zeros(3) if i == 399 else np.ones(3)} for i in range(400)]
    pool = Pool.of(frames + molecules(make_frame, charges))
    found = check_sets(pool, {}, {"training": pool, "validation": pool, "test": pool}, ["dipole"])
    assert [finding.frames for finding in found if finding.check == "zero dipole"] == [(("", 399),)]


def test_magnetic_moments_may_be_zero(make_frame):
    declare(output("magmoms", (3,), "", True, rank=1, pseudo=True))
    values = [{"magmoms": np.full((3, 3), float(i > 2))} for i in range(6)]
    assert check_zeros(molecules(make_frame, values)) == []


def test_frames_in_a_field_turn_and_have_other_energies(make_frame):
    declare(FIELD)
    turning = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    values = [{"forces": turning, "electric_field": np.array([0.0, 0.1 * (i + 1), 0.0])} for i in range(4)]
    frames = molecules(make_frame, values)
    for frame in frames:
        frame.positions[:] = frames[0].positions
    assert check_duplicates(Pool.of(frames)) == []
    assert check_forces(frames)[0].check == "torque"
    checks = {
        found.check
        for found in check_sets(
            Pool.of(frames), {}, dict.fromkeys(("training", "validation", "test"), Pool.of([])), ()
        )
    }
    assert checks <= {"energies per atom"}


def test_close_atoms(copper, check):
    copper[9].positions[1] = copper[9].positions[0] + [1.2, 0, 0]
    severity, message, frames = check(copper)["close atoms"]
    assert (severity, frames) == ("warning", [9]) and "1.200 Å apart (Cu-Cu" in message
    copper[9].positions[1] = copper[9].positions[0] + [0.01, 0, 0]
    assert check(copper)["close atoms"][0] == "error"


def test_lone_atom(check):
    atoms = ase.Atoms("Cu3", positions=[[0, 0, 0], [2.5, 0, 0], [30, 0, 0]])
    atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.zeros((3, 3))
    assert check([atoms])["lone atoms"][2] == [0]


def test_isolated_atoms(copper, check):
    atoms = [ase.Atoms("Cu", info={"energy": 1.0}), ase.Atoms("Cu", info={"energy": 1.0})]
    atoms[1].positions += 1
    assert "2 isolated atoms: Cu 1 eV." in check([*copper, *atoms], notes=True)["isolated atoms"][1]
    atoms = [ase.Atoms("Cu", info={"energy": e}, positions=[[e, 0, 0]]) for e in (1.0, 2.0)]
    severity, message, _ = check([*copper, *atoms])["isolated atoms"]
    assert severity == "error" and "several different energies" in message


# --- what cannot be read


def test_unusable_frames_are_all_found(copper, check):
    copper[5].arrays["forces"][2, 1] = np.nan
    copper[8].info["energy"] = np.inf
    severity, message, frames = check(copper, notes=True)["unusable frame"]
    assert severity == "error" and frames in ([5], [8])
    assert "every number must be finite" in message


def test_file_that_breaks_off(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\n")
    report = check_files([tmp_path / "a.xyz"], {"energy": "energy"})
    assert report.count("error") == 1 and report.findings[0].check == "unreadable"


def test_missing_and_partial_labels(copper, check):
    for atoms in copper[:10]:
        del atoms.info["stress"]
    for atoms in copper:
        del atoms.arrays["forces"]
        atoms.arrays["f_dft"] = np.zeros((8, 3))
    found = check(copper, notes=True)
    assert "f_dft" in found["labels"][1] or "55 of 65 frames have stress" in found["labels"][1]


def test_levels_of_theory_in_two_files(copper, tmp_path):
    for name, offset in (("a.xyz", 0.0), ("b.xyz", 8.0)):
        frames = copper[:30] if offset else copper[30:]
        for atoms in frames:
            atoms.info["E"] = atoms.info.pop("energy") + offset
            del atoms.info["stress"]
        ase.io.write(tmp_path / name, frames)
    report = check_files([tmp_path / "a.xyz", tmp_path / "b.xyz"], {"energy": "E"})
    [finding] = [f for f in report.findings if f.check == "energy levels"]
    assert finding.severity == "warning" and "Another level of theory" in finding.message


def test_frames_without_pairs_have_no_forces_to_compare(tmp_path):
    """Periodic atoms beyond each other's reach; the training then says what is wrong with the cutoff."""
    frames = []
    for index in range(12):
        atoms = ase.Atoms("Si2", [[0, 0, 0], [20 + 0.01 * index, 0, 0]], cell=[60, 60, 60], pbc=True)
        atoms.info["energy"], atoms.arrays["forces"] = -1.0 - 1e-4 * index, np.full((2, 3), 0.01)
        frames.append(atoms)
    path = tmp_path / "far.xyz"
    ase.io.write(path, frames)
    found = check_files([path], {})
    assert "lone atoms" in str(found)
