"""LAMMPS gives what Python gives, on any number of ranks."""

import re

import ase.io
import numpy as np
import pytest
from lammps_input import CUTOFF, SPECIES, THERMO, oxide, read_dump, setup, write_data

from equipot import EquipotCalculator
from equipot.data import graph_from_atoms
from equipot.engine.library import Engine
from equipot.models.predict import predict

# Sums of some thousand numbers in another order: 1e-16 each in float64, 6e-8 in float32.
TOLERANCE = {"nequip": 1e-10, "nequip-one-layer": 1e-10, "allegro": 1e-10, "nequip-float32": 1e-6}
BAR = 1.602176634e6  # per eV/Å³

DUMP = """
compute energies all pe/atom
compute virials all stress/atom NULL virial
compute centroid all centroid/stress/atom NULL virial
dump one all custom 1 first.dump id fx fy fz c_energies c_virials[*] c_centroid[*]
dump_modify one sort id format float %.15g
run 0
"""


def relative(found, expected) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize(
    ("name", "ranks", "triclinic"),
    [
        ("nequip", 1, False),
        ("nequip", 3, True),
        ("nequip-float32", 2, False),
        ("nequip-one-layer", 2, True),
        ("allegro", 1, True),
        ("allegro", 3, False),
    ],
)
def test_as_in_ase(lammps, model_file, tmp_path, name, ranks, triclinic, newton):
    write_data(tmp_path / "atoms.data", oxide(triclinic=triclinic))
    result = lammps(setup(model_file(name), before=f"newton {newton}") + DUMP, ranks)
    # What LAMMPS read, digits and all.
    atoms = ase.io.read(tmp_path / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    atoms = atoms[np.argsort(atoms.arrays["id"])]
    atoms.calc = EquipotCalculator(model_file(name), device="cpu")

    tolerance = TOLERANCE[name]
    energy = result.thermo[0, 1]
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    columns = read_dump(tmp_path / "first.dump")[0]
    assert relative(columns[:, 1:4], atoms.get_forces()) < tolerance
    assert relative(columns[:, 4], atoms.get_potential_energies()) < tolerance
    # Per-atom stresses are −virial; LAMMPS's bar differs from CODATA's in the eighth digit.
    scale = atoms.get_volume() * BAR
    stress = atoms.get_stress(voigt=False)
    expected = [stress[a, b] * scale for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
    assert relative(columns[:, 5:11].sum(axis=0), expected) < tolerance + 1e-7
    types = [SPECIES.index(symbol) for symbol in atoms.symbols]
    engine = Engine(model_file(name)).evaluate(atoms.positions, atoms.cell.array, atoms.pbc, types, heat=True)
    full, of_heat = (
        -BAR * virials[:, [0, 1, 2, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2, 0, 0, 1]]  # yx zx zy come last
        for virials in (engine.atom_virials, engine.atom_heat_virials)
    )
    symmetric = 0.5 * (full[:, :6] + full[:, [0, 1, 2, 6, 7, 8]])
    assert relative(columns[:, 5:11], symmetric) < tolerance + 1e-7
    assert relative(columns[:, 11:20], of_heat) < 2 * tolerance + 1e-7


@pytest.mark.parametrize("comm_style", ["brick", "tiled"])
def test_one_trajectory_on_any_number_of_ranks(lammps, model_file, tmp_path, comm_style):
    """So hot that neighbor lists are built anew twice within 40 steps."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip"), before=f"comm_style {comm_style}")
    script += "velocity all create 5000 1 loop geom\nfix 1 all nve\nrun 40\n"
    runs = [lammps(script, ranks) for ranks in (1, 2, 3, 4)]
    assert all(int(re.search(r"list builds = (\d+)", run.output)[1]) >= 2 for run in runs)
    tables = [run.thermo for run in runs]
    assert len(tables[0]) == 3
    for other in tables[1:]:
        # Rounding grows along a trajectory; 40 steps of 0.5 fs leave five digits to spare.
        assert relative(other[:, 1], tables[0][:, 1]) < 1e-12
        assert relative(other[:, 2:], tables[0][:, 2:]) < 1e-9


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_ranks_without_atoms(lammps, model_file, tmp_path, name):
    """A slab with vacuum above: of three ranks along z one or two have nothing to do."""
    slab = oxide((2, 2, 1))
    slab.set_cell([*slab.cell.lengths()[:2], 40.0])
    write_data(tmp_path / "atoms.data", slab)
    script = setup(model_file(name), before="processors 1 1 *")
    script += "velocity all create 300 1 loop geom\nfix 1 all nve\nrun 20\n"
    one, three = (lammps(script, ranks).thermo for ranks in (1, 3))
    assert relative(three[:, 1:], one[:, 1:]) < 1e-10


def test_forces_are_the_gradient_through_lammps(lammps, model_file, tmp_path):
    """Central differences of LAMMPS's own energies, h = 1e-4 Å: errors of h² are below 1e-6 relative."""
    write_data(tmp_path / "atoms.data", oxide())
    moves = "".join(
        f"group one id {atom}\ndisplace_atoms one move {x} {y} {z} units box\nrun 0\n"
        f"displace_atoms one move {-2 * x} {-2 * y} {-2 * z} units box\nrun 0\n"
        f"displace_atoms one move {x} {y} {z} units box\ngroup one delete\n"
        for atom, (x, y, z) in ((1, (1e-4, 0, 0)), (30, (0, 1e-4, 0)), (64, (0, 0, 1e-4)))
    )
    dump = "dump one all custom 1 first.dump id fx fy fz\ndump_modify one sort id format float %.15g\n"
    dump += "run 0\nundump one\n"
    energies = lammps(setup(model_file("nequip")) + dump + moves, 2).thermo[:, 1]
    forces = read_dump(tmp_path / "first.dump")[0]
    for number, (row, axis) in enumerate([(0, 1), (29, 2), (63, 3)]):
        higher, lower = energies[1 + 2 * number : 3 + 2 * number]
        assert forces[row, axis] == pytest.approx(-(higher - lower) / 2e-4, rel=1e-5, abs=1e-6)


def test_pressure_is_the_derivative_by_volume(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip")) + "run 0\nchange_box all x scale 1.0001 remap\nrun 0\n"
    script += "change_box all x scale $(0.9999/1.0001) remap\nrun 0\n"
    (_, _, pxx, *_), (_, higher, *_), (_, lower, *_) = lammps(script, 2).thermo
    numerical = -(higher - lower) / 2e-4 / oxide().get_volume() * BAR
    assert pxx == pytest.approx(numerical, rel=1e-6)


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_npt_and_minimize_on_two_ranks(lammps, model_file, tmp_path, name):
    write_data(tmp_path / "atoms.data", oxide(triclinic=True))
    script = setup(model_file(name)) + "velocity all create 300 1 loop geom\n"
    script += "fix 1 all npt temp 300 300 0.05 tri 0 0 0.5\nrun 40\nunfix 1\n"
    script += "min_style cg\nminimize 0 0 10 100\n"
    one, two = (lammps(script, ranks).thermo for ranks in (1, 2))
    assert not np.allclose(one[2, 2:], one[0, 2:], rtol=1e-3)  # the cell moved
    assert one[-1, 1] < one[3, 1]  # minimized
    assert relative(two[:3, 1:], one[:3, 1:]) < 1e-9
    assert relative(two[:, 1], one[:, 1]) < 1e-9


def test_real_units(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    metal = lammps(setup(model_file("nequip")) + "run 0\n").thermo[0]
    real = lammps(setup(model_file("nequip")).replace("units metal", "units real") + "run 0\n").thermo[0]
    assert real[1] == pytest.approx(metal[1] * 23.060547830619, rel=1e-12)
    assert real[2:] == pytest.approx(metal[2:] / 1.01325, rel=1e-6)  # atmospheres; LAMMPS's own factors


def test_hybrid_leaves_other_types_alone(lammps, model_file, tmp_path):
    """Argon above a slab: the model has the oxide, Lennard-Jones everything with argon."""
    slab = oxide((2, 2, 1))
    slab.set_cell([*slab.cell.lengths()[:2], 30.0])
    alone = slab.copy()
    slab.extend(ase.Atoms("Ar2", [[2.0, 2.0, 12.0], [6.0, 5.0, 12.5]]))
    write_data(tmp_path / "atoms.data", slab, [*SPECIES, "Ar"])
    write_data(tmp_path / "alone.data", alone)
    model = model_file("nequip")
    other = "pair_coeff 1*2 3 lj/cut 0.01 3.4\npair_coeff 3 3 lj/cut 0.01 3.4\n"
    hybrid = f"pair_style hybrid equipot lj/cut 8.0\npair_coeff * * equipot {model} O Si NULL\n{other}"
    script = setup(model, pair=hybrid) + "velocity all create 300 1 loop geom\nfix 1 all nve\nrun 20\n"
    one, three = (lammps(script, ranks).thermo for ranks in (1, 3))
    assert relative(three[:, 1:], one[:, 1:]) < 1e-10

    nothing = hybrid.replace("lj/cut 0.01", "lj/cut 0.0")
    with_argon = lammps(setup(model, pair=nothing) + "run 0\n", 2).thermo[0, 1]
    without = lammps(setup(model, data="alone.data") + "run 0\n").thermo[0, 1]
    assert with_argon == pytest.approx(without, rel=1e-12)

    overlay = f"pair_style hybrid/overlay equipot lj/cut 5.0\npair_coeff * * equipot {model} O Si\n"
    overlay += "pair_coeff * * lj/cut 0.0 3.4\n"
    overlaid = lammps(setup(model, data="alone.data", pair=overlay) + "run 0\n", 2).thermo[0, 1]
    assert overlaid == pytest.approx(without, rel=1e-12)


def test_atoms_removed_added_and_renumbered(lammps, model_file, tmp_path):
    """IDs with gaps; fewer atoms, then more, between runs of one input."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip"))
    script += "group gone id 3 17 40\ndelete_atoms group gone compress no\nrun 0\n"
    script += "create_atoms 1 single 1.2 1.1 1.3\ncreate_atoms 2 single 3.5 1.1 1.3\n"
    script += "velocity all create 300 1 loop geom\nfix 1 all nve\nrun 20\nwrite_data end.data\n"
    one, two = (lammps(script, ranks).thermo for ranks in (1, 2))
    assert relative(two[:, 1:], one[:, 1:]) < 1e-9
    # 61 of the 64 atoms, evaluated by ASE.
    atoms = oxide()
    del atoms[[2, 16, 39]]
    atoms.calc = EquipotCalculator(model_file("nequip"), device="cpu")
    assert one[0, 1] == pytest.approx(atoms.get_potential_energy(), rel=1e-8)  # the data file's digits


def test_atoms_without_ids(lammps, model_file):
    """Nothing says which ghosts are images of one atom: each asks its owner, on one rank too."""
    made = (
        "lattice fcc 4.6\nregion box block 0 2 0 2 0 2\ncreate_box 2 box\ncreate_atoms 1 box\n"
        "lattice fcc 4.6 origin 0.5 0 0\ncreate_atoms 2 box\nmass * 20.0\n"
    )
    moved = "displace_atoms all ramp x 0 0.8 y 0 9.2 units box\nrun 0\n"  # a shear that does not fit the box
    for newton in ("on", "off"):
        script = setup(model_file("nequip"), before=f"newton {newton}") + moved
        script = script.replace("read_data atoms.data", made)
        with_ids = lammps(script).thermo[0]
        script = script.replace("atom_style", "atom_modify id no\natom_style")
        for ranks in (1, 2):
            # atoms come in another order, and so do sums
            assert relative(lammps(script, ranks).thermo[0, 1:], with_ids[1:]) < 1e-10


def test_atoms_that_the_model_ceases_to_see_between_neighbor_lists(lammps, model_file, tmp_path):
    """Their owners tell the ranks that have them as ghosts."""
    write_data(tmp_path / "atoms.data", oxide((1, 1, 2)))
    pair = (
        "pair_style hybrid/overlay equipot lj/cut 3.0\npair_coeff 1*2 2 lj/cut 0.01 1.0\n"
        f"pair_coeff * * equipot {model_file('nequip')} O NULL\n"
    )
    script = "thermo 1\nfix 1 all nve\nrun 1\nset atom 1*5 type 2\nrun 2 pre no\nset atom 1*5 type 1\nrun 2\n"
    one, three = (lammps(setup(None, pair=pair) + script, ranks).thermo for ranks in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-9)
    assert np.ptp(one[:, 1]) > 1.0


def test_types_changed_between_neighbor_lists(lammps, model_file, tmp_path):
    """As Monte Carlo fixes and scripts do it; `pre no` keeps the neighbor lists."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip")) + "run 0\nset atom 5 type 2\nset atom 6*8 type 1\n"
    kept = lammps(script + "run 1 pre no\n").thermo
    fresh = lammps(script + "run 1\n").thermo
    assert abs(fresh[1, 1] - fresh[0, 1]) > 1e-4
    # the same edges, some of them in another order
    assert kept[-1, 1] == pytest.approx(fresh[1, 1], rel=1e-12)


def test_restart_and_rerun(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    model = model_file("nequip")
    move = "fix 1 all nve\n"
    script = setup(model) + "velocity all create 300 1 loop geom\n" + move
    script += "dump all all custom 20 all.dump id type x y z\ndump_modify all sort id format float %.16g\n"
    straight = lammps(script + "run 20\nwrite_restart half.restart\nrun 20\n").thermo
    pair = f"pair_style equipot\npair_coeff * * {model} O Si\nneighbor 0.5 bin\n"
    from_restart = f"read_restart half.restart\n{pair}timestep 0.0005\n{THERMO}thermo 20\n{move}run 20\n"
    again = lammps(from_restart, 2).thermo
    assert relative(again[:, 1:], straight[-2:, 1:]) < 1e-10
    reran = lammps(setup(model) + "rerun all.dump dump x y z\n", 2).thermo
    assert reran[:, 1] == pytest.approx(straight[[0, 1, 3], 1], rel=1e-12)


HEAT_FLUX = """
compute e all pe/atom
compute k all ke/atom
compute w all centroid/stress/atom NULL virial
compute j all heat/flux k e w
thermo_style custom step c_j[1] c_j[2] c_j[3]
thermo_modify format float %.15g
"""


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize(
    ("name", "ranks"), [("nequip", 1), ("nequip", 2), ("nequip", 3), ("nequip", 4), ("allegro", 2)]
)
def test_heat_flux(lammps, model_file, tmp_path, name, ranks, newton):
    """compute heat/flux gives J V = d/dt Σ r_i e_i for a cluster; here from torch's energies and forces.

    d/dt Σ r_i e_i = Σ e_i v_i + Σ r_i (F_i v_i + dU_i/dt). dU_i/dt by central differences, h = 1e-5 ps: atoms
    move by 1e-4 Å, errors of its square are below 1e-7 relative. LAMMPS's constants have eight digits.
    """
    cluster = oxide((2, 1, 1))
    cluster.center(vacuum=8.0)
    write_data(tmp_path / "atoms.data", cluster)
    script = setup(model_file(name), before=f"newton {newton}") + "velocity all create 600 1 loop geom\n"
    script += HEAT_FLUX
    script += "dump one all custom 1 v.dump id vx vy vz c_k\ndump_modify one sort id format float %.15g\n"
    flux = lammps(script + "run 0\n", ranks).thermo[0, 1:]
    _, *velocities, kinetic = read_dump(tmp_path / "v.dump")[0].T
    velocities, step = np.stack(velocities, axis=1), 1e-5  # Å/ps, ps

    atoms = ase.io.read(tmp_path / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    atoms = atoms[np.argsort(atoms.arrays["id"])]
    atoms.calc = EquipotCalculator(model_file(name), device="cpu", engine="torch")
    virials = predict(atoms.calc.model, graph_from_atoms(atoms, SPECIES, CUTOFF)).atom_virials.numpy()
    start, energies = atoms.positions.copy(), kinetic + atoms.get_potential_energies()
    power = (atoms.get_forces() * velocities).sum(axis=1)
    for sign in (1, -1):
        atoms.positions = start + sign * step * velocities
        power += sign * atoms.get_potential_energies() / (2 * step)
    carried = power @ start
    assert relative(flux, energies @ velocities + carried) < 1e-6
    assert relative(flux - energies @ velocities, carried) < 1e-5  # which is small beside the first
    # Virials counted at the neighbor carry something else as soon as there are messages.
    off = relative(np.einsum("nab,nb->a", virials, velocities), carried)
    assert off > 0.05 if name == "nequip" else off < 1e-6


@pytest.mark.parametrize("style", ["brick", "tiled"])
def test_heat_flux_on_ranks_without_atoms(lammps, model_file, tmp_path, style):
    """Tiled domains wait for each other's gradients, those without atoms and ghosts too."""
    cluster = oxide((1, 1, 1))
    cluster.pbc = False
    write_data(tmp_path / "atoms.data", cluster)
    script = setup(model_file("nequip"), before=f"comm_style {style}")
    script += "change_box all boundary f f f x final -20 60 y final -20 60 z final -20 60\n"
    script += "velocity all create 600 1 loop geom\n" + HEAT_FLUX + "run 0\n"
    one, four = (lammps(script, ranks).thermo[0, 1:] for ranks in (1, 4))
    assert relative(four, one) < 1e-9 and np.abs(one).max() > 1


def test_partitions_of_a_node_know_of_each_other(lammps, model_file, tmp_path):
    """Each replica takes a GPU of its own where there are several, by its process's number on the node."""
    write_data(tmp_path / "atoms.data", oxide())
    lammps(setup(model_file("allegro")) + "run 0\n", ranks=2, arguments=["-partition", "2x1"])
    screens = [(tmp_path / f"screen.{n}").read_text() for n in range(2)]
    for n, screen in enumerate(screens):
        assert f"partition {n + 1} starts with process {n} of its node" in screen
