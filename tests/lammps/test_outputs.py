"""What a model predicts beside the energy: ASE's numbers, on any number of ranks."""

import re

import ase.io
import numpy as np
import pytest
import torch
from lammps_input import CUTOFF, SPECIES, oxide, read_dump, setup, write_data

from equipot import EquipotCalculator
from equipot.config import config_from_dict
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.models.build import build_potential
from equipot.quantities import CONTRACT, KEYS, QUANTITIES

OUTPUTS = {
    "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
    "charges": {"per": "atom", "tensor": "scalar", "unit": "e"},
    "born_charges": {"per": "atom", "tensor": "matrix", "unit": "e"},
    "spectrum": {"per": "structure", "tensor": "scalar", "size": 4, "reduce": "mean", "positive": True},
    "gap": {"per": "structure", "tensor": "scalar", "unit": "eV"},
    "polarizability": {"per": "structure", "tensor": "symmetric", "unit": "e^2*Ang^2/eV"},
    "shared": {"per": "atom", "tensor": "scalar", "unit": "e", "sum": "charge"},
    "molecular": {"per": "structure", "tensor": "vector", "unit": "e*Ang", "charges": "shared"},
    "slope": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "dipole"},
}
FIELD = [0.2, -0.1, 0.3]
MODELS = {
    "nequip": {"type": "nequip", "layers": 3, "channels": 4, "radial_hidden": [8]},
    "allegro": {"type": "allegro", "layers": 1, "channels": 4, "scalar_channels": 8},
}
ASKED = """
group few id 1:10
compute charges all equipot/output charges
compute born few equipot/output born_charges
compute dipole all equipot/output dipole
compute few few equipot/output dipole
compute spectrum all equipot/output spectrum
compute gap all equipot/output gap
thermo_style custom step pe c_dipole[*] c_few[*] c_spectrum[*] c_gap
thermo_modify norm no format float %.15g
dump one all custom 1 first.dump id c_charges c_born[*]
dump_modify one sort id format float %.15g
"""


@pytest.fixture(autouse=True, scope="module")
def _forget():
    """What is declared here."""
    before = [dict(known) for known in (QUANTITIES, KEYS, CONTRACT)]
    yield
    for known, old in zip((QUANTITIES, KEYS, CONTRACT), before, strict=True):
        known.clear()
        known.update(old)


def write_model(path, kind: str, outputs: dict, seed: int = 0, **more):
    torch.manual_seed(seed)
    model = MODELS[kind] | {"cutoff": CUTOFF, "dtype": "float64", "outputs": outputs} | more
    model["field"] = "dipole" in outputs
    config = config_from_dict({"data": {"train": "x.xyz"}, "model": model}).model
    potential = build_potential(config, SPECIES, 20.0, [-4.0, -1.0], 1.0)
    write_torchscript(
        potential, path, synthetic_structures(SPECIES, CUTOFF), source="synthetic structures",
        model_type=kind, atomic_energies=[-4.0, -1.0] if config.energy else (), weights="ema",
        validation={}, config="",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("outputs") / "model.pt", request.param, OUTPUTS)


def written(tmp_path):
    """Atoms as LAMMPS reads them, by id."""
    write_data(tmp_path / "atoms.data", oxide(triclinic=True))
    atoms = ase.io.read(tmp_path / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    return atoms[np.argsort(atoms.arrays["id"])]


def test_as_in_ase(lammps, model, tmp_path):
    atoms = written(tmp_path)
    calculator = EquipotCalculator(model, device="cpu")
    right = {
        name: calculator.get_property(name, atoms) for name in ("energy", *OUTPUTS) if name != "molecular"
    }
    # Of a group: its atoms' rows, as they are in the sum.
    edges = calculator.neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
    types = calculator.model.atom_types(atoms.numbers)[edges.order]
    rows = calculator.model.rows(edges.vec, edges.index, types, types >= 0)["dipole"][edges.place]
    np.testing.assert_allclose(rows.sum(axis=0), right["dipole"], atol=1e-9)
    expected = [right["energy"], *right["dipole"], *rows[:10].sum(axis=0), *right["spectrum"], right["gap"]]
    for ranks, newton in ((1, "on"), (2, "off"), (4, "on")):
        thermo = lammps(setup(model, before=f"newton {newton}") + ASKED + "run 0\n", ranks).thermo[0]
        assert thermo[1:] == pytest.approx(expected, rel=1e-9, abs=1e-11)
        _, charges, *born = read_dump(tmp_path / "first.dump")[0].T
        assert charges == pytest.approx(right["charges"], rel=1e-9, abs=1e-11)
        of_few = np.transpose(born).reshape(-1, 3, 3)
        np.testing.assert_allclose(of_few[:10], right["born_charges"][:10], rtol=1e-9, atol=1e-11)
        assert not of_few[10:].any() and np.abs(of_few[:10]).max() > 1e-3


IN_FIELD = """
compute dipole all equipot/output dipole
compute slope all equipot/output slope
compute alpha all equipot/output polarizability
group few id 1:10
compute shared few equipot/output shared total 2.5
thermo_style custom step pe pxx pyy pzz pxy pxz pyz c_dipole[*] c_alpha[*]
thermo_modify norm no format float %.15g
dump one all custom 1 first.dump id fx fy fz c_shared c_slope[*]
dump_modify one sort id format float %.15g
"""


def test_field_and_derivatives_as_in_ase(lammps, model, tmp_path):
    """Derivatives of the ghosts go home; forces are in the field, and change by these."""
    atoms = written(tmp_path)
    atoms.info["charge"] = 2.5
    atoms.calc = EquipotCalculator(model, device="cpu", field=FIELD)
    forces, stress, energy = atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    found = dict(atoms.calc.results)
    bars = 1602176.5 * -stress[[0, 1, 2, 5, 4, 3]]  # as LAMMPS has it
    expected = [energy, *bars, *found["dipole"], *found["polarizability"].ravel()]
    pair = f"pair_style equipot field {' '.join(map(str, FIELD))}\npair_coeff * * {model} O Si\n"
    for ranks, newton in ((1, "on"), (2, "off"), (4, "on")):
        result = lammps(setup(model, pair=pair, before=f"newton {newton}") + IN_FIELD + "run 0\n", ranks)
        assert "electric field: 0.2 -0.1 0.3 V/A" in result.output
        assert result.thermo[0, 1:] == pytest.approx(expected, rel=1e-8, abs=1e-5)
        _, *columns = read_dump(tmp_path / "first.dump")[0].T
        np.testing.assert_allclose(np.transpose(columns[:3]), forces, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(columns[3][:10], found["shared"][:10], atol=1e-11)
        assert not columns[3][10:].any()
        slopes = np.transpose(columns[4:]).reshape(-1, 3, 3)
        np.testing.assert_allclose(slopes, found["slope"], rtol=1e-9, atol=1e-10)
    atoms.calc.field = None
    assert np.abs(atoms.get_forces() - forces).max() > 1e-3 < np.abs(slopes).max()


def test_a_field_that_is_not_felt(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide((1, 1, 1)))
    for setting, message in (
        ("field 0 0 0.1", "the energy of a model does not depend on an electric field"),
        ("field 0 0.1", "found 'field'"),
        ("field 0 0 up", "instead of 'up'"),
    ):
        pair = f"pair_style equipot {setting}\npair_coeff * * {model_file('allegro')} O Si\n"
        said = lammps(setup(model_file("allegro"), pair=pair) + "run 0\n", 2, expect=None)
        assert said.returncode != 0 and message in " ".join(said.output.split()), said.output[-1000:]


def test_in_runs_and_units(lammps, model, tmp_path):
    """Asked for in one run only, then again; in the output's own unit; energies stay what they are."""
    written(tmp_path)
    script = setup(model) + "velocity all create 600 1 loop geom\nfix 1 all nve\nthermo 5\n"
    columns = "thermo_style custom step pe c_gap\nthermo_modify norm no format float %.15g\n"
    asked = "compute gap all equipot/output gap\n" + columns + "run 10\n"
    plain = "thermo_style custom step pe pe\nuncompute gap\nrun 5\n"  # as many columns
    found = lammps(script + asked + plain + asked, 2).thermo
    bare = lammps(script + columns.replace("c_gap", "pe") + "run 10\n", 2).thermo
    assert np.diff(found[:3, 2]).all()
    np.testing.assert_array_equal(found[:3, 1], bare[:3, 1])
    real = (setup(model) + asked.replace("run 10", "run 0")).replace("units metal", "units real")
    assert lammps(real).thermo[0, 2] == pytest.approx(found[0, 2], rel=1e-9)


def test_mean_of_an_ensemble(lammps, tmp_path):
    atoms = written(tmp_path)
    some = {"gap": OUTPUTS["gap"], "charges": OUTPUTS["charges"]}
    members = [write_model(tmp_path / f"{seed}.pt", "allegro", some, seed) for seed in range(2)]
    calculator = EquipotCalculator(members, device="cpu")
    pair = f"pair_style equipot\npair_coeff * * {members[0]} {members[1]} O Si\n"
    columns = "compute gap all equipot/output gap\nthermo_style custom step pe c_gap\n"
    columns += "thermo_modify norm no format float %.15g\nrun 0\n"
    right = [calculator.get_property(name, atoms) for name in ("energy", "gap")]
    assert lammps(setup(members[0], pair=pair) + columns, 2).thermo[0, 1:] == pytest.approx(right, rel=1e-9)
    other = write_model(tmp_path / "other.pt", "allegro", {"charges": OUTPUTS["charges"]})
    pair = f"pair_style equipot\npair_coeff * * {members[0]} {other} O Si\n"
    said = " ".join(lammps(setup(other, pair=pair) + columns, expect=None).output.split())
    assert "gap: the model predicts energies and forces only, its members differ" in said


def test_a_model_without_energies(lammps, tmp_path):
    """Beside a pair style that moves the atoms; alone it would not."""
    atoms, some = written(tmp_path), {"gap": OUTPUTS["gap"], "charges": OUTPUTS["charges"]}
    model = write_model(tmp_path / "alone.pt", "nequip", some, energy=False)
    right = EquipotCalculator(model, device="cpu").get_property("gap", atoms)
    columns = "compute gap all equipot/output gap\nthermo_style custom step pe c_gap\n"
    columns += "thermo_modify norm no format float %.15g\nrun 0\n"
    beside = "pair_style hybrid/overlay equipot lj/cut 4.0\npair_coeff * * lj/cut 0.1 2.0\n"
    pair = f"{beside}pair_coeff * * equipot {model} O Si\n"
    energy, gap = lammps(setup(model, pair=pair) + columns, 2).thermo[0, 1:]
    assert gap == pytest.approx(right, rel=1e-9) and energy != 0
    said = lammps(setup(model) + columns, 2, expect=None)
    assert said.returncode != 0 and "predicts no energies and forces" in " ".join(said.output.split())


def test_ranks_without_atoms(lammps, model, tmp_path):
    atoms = oxide((1, 1, 1))
    atoms.pbc = False
    write_data(tmp_path / "atoms.data", atoms)
    alone = "change_box all boundary f f f x final -20 60 y final -20 60 z final -20 60\n"
    asked = ASKED.replace("1:10", "1:4") + "run 0\n"
    one, four = (lammps(setup(model) + alone + asked, ranks).thermo[0] for ranks in (1, 4))
    assert four == pytest.approx(one, rel=1e-9, abs=1e-11) and np.abs(one[2:5]).max() > 1e-3
    asked = "compute s all equipot/output spectrum\nthermo_style custom step pe c_s[*]\nrun 0\n"
    assert not lammps(setup(model) + "delete_atoms group all\n" + asked, 2).thermo.any()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("{setup}compute a all equipot/output mu\n", "no output of this name, but dipole, charges,"),
        ("{setup}compute a all equipot/output\n", "NAME one of the model's outputs, found 0 words behind"),
        ("{setup}compute a all equipot/output molecular\n", "molecular: it has sum q r of 'shared'"),
        ("{setup}compute a all equipot/output gap fast\n", "found 2 words behind equipot/output"),
        (
            "{setup}compute a all equipot/output gap\npair_style zero 4.0\npair_coeff * *\nrun 0\n",
            "needs one pair_style equipot",
        ),
        (
            "{setup}compute a all equipot/output gap\npair_style equipot\npair_coeff * * {plain} O Si\n"
            "thermo_style custom step c_a\nrun 0\n",
            "compute equipot/output gap: the model predicts energies and forces only",
        ),
        (
            "{setup}compute a all equipot/output gap\nvariable v equal 1+c_a\n"
            "fix scale all adapt 1 pair equipot scale * * v_v\nrun 0\n",
            "before the forces are known there",
        ),
    ],
)
def test_what_cannot_be(lammps, model, model_file, tmp_path, script, message):
    write_data(tmp_path / "atoms.data", oxide((1, 1, 1)))
    said = lammps(script.format(setup=setup(model), plain=model_file("allegro")), 2, expect=None)
    assert said.returncode != 0 and message in " ".join(said.output.split()), said.output[-2000:]


def test_a_model_that_a_gpu_does_not_run(lammps, with_gpu, tmp_path):
    """With `device auto` the CPU runs it, which is said."""
    write_model(tmp_path / "model.pt", "nequip", {"charges": OUTPUTS["charges"]})
    script = setup(tmp_path / "model.pt") + "run 0\n"
    result = lammps(script, 2)
    said = "it predicts more than energies and forces (model.outputs), which the engine does on a CPU only"
    assert re.search(rf"WARNING: equipot: .*{re.escape(said)}.* 'device auto' takes the CPU", result.output)
    assert "ranks 0-1: cpu" in result.output
    output = lammps(script.replace("pair_style equipot", "pair_style equipot device cuda"), expect=1).output
    assert said in output
