"""Several models at once: the mean of what each gives, and how much they disagree."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from lammps_input import oxide, read_dump, rewrite, setup, write_data

from equipot import EquipotCalculator

BAR = 1.602176634e6  # per eV/Å³
# Sums in another order: 1e-16 each in float64, 6e-8 in float32, and deviations are differences of them.
TOLERANCE = {"nequip": 1e-10, "allegro": 1e-10, "nequip-float32": 2e-6}
DEVIATION = "compute dev all equipot/deviation\n"
COLUMNS = "thermo_style custom step pe c_dev[*]\nthermo_modify format float %.15g\n"
DUMP = """
group few id 1:10
compute few few equipot/deviation
thermo_style custom step pe pxx pyy pzz pxy pxz pyz c_dev[*] c_few[*]
thermo_modify format float %.15g
dump one all custom 1 first.dump id fx fy fz c_dev c_few
dump_modify one sort id format float %.15g
run 0
"""


def relative(found, expected) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def read_atoms(folder):
    """What LAMMPS read, digits and all."""
    atoms = ase.io.read(folder / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    return atoms[np.argsort(atoms.arrays["id"])]


def of_all(deviations) -> list[float]:
    return [deviations.max(), deviations.min(), deviations.mean()]


@pytest.mark.parametrize(
    ("name", "ranks", "newton"),
    [
        ("nequip", 1, "on"),
        ("nequip", 3, "on"),
        ("nequip", 4, "off"),
        ("nequip-float32", 2, "on"),
        ("allegro", 1, "off"),
        ("allegro", 2, "on"),
    ],
)
def test_as_in_ase(lammps, ensemble, tmp_path, name, ranks, newton):
    write_data(tmp_path / "atoms.data", oxide(triclinic=True))
    script = setup(ensemble(name), before=f"newton {newton}") + DEVIATION + DUMP
    thermo = lammps(script, ranks).thermo[0]
    atoms = read_atoms(tmp_path)
    atoms.calc = EquipotCalculator(ensemble(name), device="cpu")
    tolerance = TOLERANCE[name]
    assert thermo[1] == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    assert relative(thermo[2:8], -BAR * atoms.get_stress()[[0, 1, 2, 5, 4, 3]]) < tolerance + 1e-7
    _, *forces, deviations, of_few = read_dump(tmp_path / "first.dump")[0].T
    assert relative(np.transpose(forces), atoms.get_forces()) < tolerance
    expected = atoms.calc.results["forces_std"]
    assert relative(deviations, expected) < tolerance
    assert thermo[11:14] == pytest.approx(of_all(expected), rel=tolerance)
    assert thermo[17:20] == pytest.approx(of_all(expected[:10]), rel=tolerance)
    assert np.array_equal(of_few[:10], deviations[:10]) and not of_few[10:].any()
    assert np.array_equal(thermo[14:17], thermo[8:11])  # there is one virial


def test_as_in_runs_of_each_member(lammps, ensemble, tmp_path):
    """DeePMD's columns: of the virial's nine components by the number of atoms, of the forces by atom."""
    write_data(tmp_path / "atoms.data", oxide())
    dump = (
        "thermo_style custom step pe pxx pyy pzz pxy pxz pyz{}\nthermo_modify format float %.15g\n"
        "compute w all centroid/stress/atom NULL virial\n"
        "dump one all custom 1 first.dump id fx fy fz c_w[*]\n"
        "dump_modify one sort id format float %.15g\nrun 0\n"
    )
    together = lammps(setup(ensemble("nequip")) + DEVIATION + dump.format(" c_dev[*]"), 2).thermo[0]
    of_heat = read_dump(tmp_path / "first.dump")[0][:, 4:]
    energies, virials, columns = [], [], []
    for member in sorted(ensemble("nequip").iterdir()):
        _, energy, *pressure = lammps(setup(member) + dump.format("")).thermo[0]
        energies.append(energy)
        virials.append(np.array(pressure) * oxide().get_volume() / BAR)
        columns.append(read_dump(tmp_path / "first.dump")[0][:, 1:])
    assert len(energies) == 3 and together[1] == pytest.approx(np.mean(energies), rel=1e-12)
    assert relative(of_heat, np.mean(columns, axis=0)[:, 3:]) < 1e-10
    forces = np.array(columns)[:, :, :3]
    of_forces = np.sqrt(np.square(forces - forces.mean(axis=0)).sum(axis=(0, 2)) / 2)
    assert together[11:14] == pytest.approx(of_all(of_forces), rel=1e-9)
    of_virial = np.std(virials, axis=0, ddof=1)[[0, 1, 2, 3, 4, 5, 3, 4, 5]] / 64
    average = np.sqrt(np.square(of_virial).mean())
    # LAMMPS's bar differs from CODATA's in the eighth digit, and the smallest is a difference.
    assert together[8:11] == pytest.approx([of_virial.max(), of_virial.min(), average], rel=1e-5)


def test_heat_virials_are_the_mean(lammps, ensemble, tmp_path):
    """For compute heat/flux, by way of a hybrid style."""
    write_data(tmp_path / "atoms.data", oxide())
    overlay = (
        f"pair_style hybrid/overlay equipot zero 4.0\npair_coeff * * equipot {ensemble('nequip')} O Si\n"
        "pair_coeff * * zero\ncompute w all centroid/stress/atom NULL virial\n"
        "dump one all custom 1 w.dump id c_w[*]\ndump_modify one sort id format float %.15g\n"
    )
    lammps(setup(ensemble("nequip"), pair=overlay) + "run 0\n", 2)
    atoms = read_atoms(tmp_path)
    virials = EquipotCalculator(ensemble("nequip"), device="cpu").get_property("heat_virials", atoms)
    expected = -BAR * virials[:, [0, 1, 2, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2, 0, 0, 1]]
    assert relative(read_dump(tmp_path / "w.dump")[0][:, 1:], expected) < 1e-7  # LAMMPS's bar


def test_equal_members_agree(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    file = model_file("nequip")
    pair = f"pair_style equipot\npair_coeff * * {file} {file} {file} O Si\n"
    thermo = lammps(setup(file, pair=pair) + DEVIATION + DUMP, 2).thermo[0]
    assert thermo[1] == pytest.approx(lammps(setup(file) + "run 0\n").thermo[0, 1], rel=1e-12)
    assert not thermo[8:].any()


def test_members_of_several_kinds(lammps, model_file, tmp_path):
    """That exchange features of other widths and precisions, or none."""
    write_data(tmp_path / "atoms.data", oxide())
    files = [model_file(name) for name in ("allegro", "nequip-float32", "nequip")]
    pair = f"pair_style equipot\npair_coeff * * {' '.join(map(str, files))} O Si\n"
    script = setup(files[0], pair=pair) + DEVIATION + "velocity all create 600 1 loop geom\nfix 1 all nve\n"
    script += COLUMNS
    one, *others = (lammps(script + "run 20\n", ranks).thermo for ranks in (1, 3))
    for other in others:
        assert relative(other, one) < 1e-6
    atoms = read_atoms(tmp_path)
    atoms.calc = EquipotCalculator(files, device="cpu")
    assert one[0, 1] == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
    assert one[0, 5] == pytest.approx(atoms.calc.results["forces_std"].max(), rel=1e-5)


def test_units_scale_and_isolated_atoms(lammps, ensemble, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(ensemble("nequip")) + DEVIATION
    run = COLUMNS + "run 0\n"
    metal = lammps(script + run).thermo[0]
    real = lammps(script.replace("units metal", "units real") + run, 2).thermo[0]
    assert real[1:] == pytest.approx(metal[1:] * 23.060547830619, rel=1e-9)
    scaled = "variable half equal 0.5\nfix scale all adapt 1 pair equipot scale * * v_half\n"
    assert lammps(script + scaled + run).thermo[0, 1:] == pytest.approx(metal[1:] / 2, rel=1e-9)
    isolated = lammps(script.replace("pair_style equipot", "pair_style equipot energy isolated") + run)
    calculator = EquipotCalculator(ensemble("nequip"), device="cpu")
    alone = [calculator.get_potential_energy(ase.Atoms(symbol)) for symbol in oxide().get_chemical_symbols()]
    assert isolated.thermo[0, 1] == pytest.approx(metal[1] - sum(alone), rel=1e-10)
    assert isolated.thermo[0, 2:] == pytest.approx(metal[2:], rel=1e-12)


def test_atoms_that_the_model_does_not_see(lammps, ensemble, tmp_path):
    """They have no deviation, and do not count: those of another style, and those that are excluded."""
    atoms = oxide()
    with_argon = atoms + ase.Atoms("Ar", [[4.0, 4.0, 4.1]])
    write_data(tmp_path / "atoms.data", with_argon, ["O", "Si", "Ar"])
    hybrid = f"pair_style hybrid equipot lj/cut 4.0\npair_coeff * * equipot {ensemble('nequip')} O Si NULL\n"
    hybrid += "pair_coeff * 3 lj/cut 0.0 1.0\n"
    dump = DUMP.replace("compute few few", "group gone id 3 65\ncompute few gone")
    thermo = lammps(setup(ensemble("nequip"), pair=hybrid) + DEVIATION + dump, 2).thermo[0]
    deviations = read_dump(tmp_path / "first.dump")[0][:, 4]
    assert deviations[64] == 0 and (deviations[:64] > 0).all()
    assert thermo[11:14] == pytest.approx(of_all(deviations[:64]), rel=1e-12)
    assert thermo[17:20] == pytest.approx(np.full(3, deviations[2]), rel=1e-12)
    write_data(tmp_path / "atoms.data", atoms)
    script = setup(ensemble("nequip")) + DEVIATION + "group out id 3 17 40\n"
    excluded = lammps(script + "neigh_modify exclude group out all\n" + COLUMNS + "run 0\n", 2).thermo
    deleted = lammps(script + "delete_atoms group out compress no\n" + COLUMNS + "run 0\n", 2).thermo
    assert excluded[0] == pytest.approx(deleted[0], rel=1e-9)


def test_file_in_the_columns_of_deepmd_and_a_halt(lammps, ensemble, tmp_path):
    """What the page and the example show; DP-GEN reads this file by numpy.loadtxt."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(ensemble("nequip")) + DEVIATION + "velocity all create 1000 1 loop geom\nfix 1 all nve\n"
    script += (
        "fix devi all ave/time 10 1 10 c_dev[*] file model_devi.out title1 '' "
        "title2 '# step max_devi_v min_devi_v avg_devi_v max_devi_f min_devi_f avg_devi_f'\n"
        "variable worst equal c_dev[4]\nfix stop all halt 5 v_worst > 0.5 error soft message no\n"
        "thermo_style custom step pe c_dev[*]\nthermo_modify format float %.15g\nthermo 5\n"
    )
    result = lammps(script + "run 200\n", 2)
    halted = int(result.thermo[-1, 0])
    assert 10 < halted < 200 and result.thermo[-1, 5] > 0.5 > result.thermo[-2, 5]
    table = np.loadtxt(tmp_path / "model_devi.out")
    assert table.shape == (halted // 10 + 1, 7)
    in_log = result.thermo[np.isin(result.thermo[:, 0], table[:, 0])]
    assert table == pytest.approx(in_log[:, [0, 2, 3, 4, 5, 6, 7]], rel=1e-4)


def test_example(lammps, ensemble, tmp_path):
    """Its input, with models that disagree more and more."""
    (tmp_path / "ensemble").symlink_to(ensemble("nequip"))
    example = Path(__file__).parents[2] / "examples" / "03_lammps" / "in.deviation"
    arguments = [
        word for pair in (("steps", 100), ("low", 0.01), ("high", 2)) for word in ("-var", *map(str, pair))
    ]
    thermo = lammps(example.read_text(), 2, arguments=arguments).thermo
    table, steps = np.loadtxt(tmp_path / "model_devi.out"), range(0, 101, 10)
    assert table[:, 0].tolist() == list(steps) and table[-1, 4] == pytest.approx(thermo[-1, 3], rel=1e-4)
    shown = [step for step, *_, largest, _, _ in table if step % 50 == 0 and 0.01 <= largest <= 2]
    frames = ase.io.read(tmp_path / "candidates.dump", ":", format="lammps-dump-text")
    assert len(frames) == len(shown) > 0 and set(frames[-1].symbols) == {"Si"}


def test_two_ensembles_in_one_input(lammps, ensemble, tmp_path):
    """One after the other, by a second pair_coeff and after clear."""
    write_data(tmp_path / "atoms.data", oxide())
    nequip, allegro = (setup(ensemble(name)) + DEVIATION + COLUMNS for name in ("nequip", "allegro"))
    right = [lammps(script + "run 0\n").thermo[0] for script in (nequip, allegro)]
    again = f"pair_coeff * * {ensemble('allegro')} O Si\nrun 0\n"
    found = lammps(nequip + "run 0\n" + again + "clear\n" + nequip + "run 0\n", 2).thermo
    assert found == pytest.approx(np.array([*right, right[0]]), rel=1e-9)


def test_atoms_without_ids(lammps, ensemble):
    """Each ghost is a row of its own, on one rank too."""
    made = (
        "lattice fcc 4.6\nregion box block 0 2 0 2 0 2\ncreate_box 2 box\ncreate_atoms 1 box\n"
        "lattice fcc 4.6 origin 0.5 0 0\ncreate_atoms 2 box\nmass * 20.0\n"
    )
    moved = "displace_atoms all ramp x 0 0.8 y 0 9.2 units box\nrun 0\n"
    for newton in ("on", "off"):
        script = setup(ensemble("nequip"), before=f"newton {newton}") + DEVIATION + COLUMNS + moved
        script = script.replace("read_data atoms.data", made)
        with_ids = lammps(script).thermo[0]
        script = script.replace("atom_style", "atom_modify id no\natom_style")
        for ranks in (1, 2):
            assert relative(lammps(script, ranks).thermo[0, 1:], with_ids[1:]) < 1e-10


def test_models_that_do_not_belong_together(lammps, model_file, ensemble, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    members = sorted(ensemble("nequip").iterdir())

    def said(given, ranks=2, after=DEVIATION + "run 0\n") -> str:
        pair = f"pair_style equipot\npair_coeff * * {given} O Si\n"
        result = lammps(setup(Path(), pair=pair) + after, ranks, expect=None)
        assert result.returncode != 0 and result.output.count("ERROR") == 1
        return " ".join(result.output.split())

    gap = tmp_path / "gap"
    gap.mkdir()
    (gap / "member_0.pt").write_bytes(members[0].read_bytes())
    assert "holds one member only: an ensemble has two at least" in said(gap)
    (gap / "member_2.pt").write_bytes(members[2].read_bytes())
    assert "holds member_0.pt, member_2.pt, but no member_1: it is not the whole ensemble" in said(gap)
    (gap / "member_1").mkdir()  # as a training leaves it
    assert "member_1: expected a model file written by 'equipot deploy', found a folder" in said(gap)
    assert "expected a model file written by 'equipot deploy', found a folder" in said(tmp_path)
    assert "is a folder: expected one folder of an ensemble alone" in said(
        f"{members[0].parent} {members[0]}"
    )
    assert "found 3, or 2 files: there is no file 'O'" in said(f"{members[0]} O")
    damaged = bytearray(members[1].read_bytes())
    damaged[damaged.index(b"engine/weights") + 5000] ^= 1
    (tmp_path / "damaged.pt").write_bytes(damaged)
    assert "damaged.pt: damaged (wrong checksum of '" in said(f"{members[0]} damaged.pt")

    def shorter(name: str, content: bytes) -> bytes:
        changed = {"cutoff": 3.5} if name.endswith("program.json") else None
        return json.dumps(json.loads(content) | changed).encode() if changed else content

    rewrite(members[1], tmp_path / "shorter.pt", shorter)
    assert (
        "Species and cutoff of an ensemble's members must be the same, but those of shorter.pt (O Si, 3.5 A) "
        f"are not those of {members[0]} (O Si, 4 A)"
    ) in said(f"{members[0]} shorter.pt")
    assert "needs an ensemble: 'pair_coeff * * FOLDER" in said(members[0])
    early = "variable v equal 1+c_dev[4]\nfix scale all adapt 1 pair equipot scale * * v_v\nrun 0\n"
    assert "on step 0 before the forces are known there" in said(members[0].parent, after=DEVIATION + early)
    bare = DEVIATION + "pair_style zero 4.0\npair_coeff * *\nrun 0\n"
    assert "needs one pair_style equipot" in said(members[0], after=bare)
    assert "found 'fast' behind it" in said(members[0], after="compute dev all equipot/deviation fast\n")
