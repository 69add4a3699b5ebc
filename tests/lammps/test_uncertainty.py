"""How uncertain a single model is of its energies: ASE's numbers, on any number of ranks."""

import ase.io
import numpy as np
import pytest
import torch
from conftest import MODELS
from lammps_input import CUTOFF, SPECIES, oxide, read_dump, setup, write_data

from equipot import EquipotCalculator
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.rigidity import Rigidity
from equipot.deploy.torchscript import write_torchscript
from equipot.engine.library import Engine
from equipot.models.build import build_potential

FIGURES = {"features": 1, "training_frames": 9, "validation_frames": 5}
FIGURES |= {"predicted_rms": 0.1, "error_rms": 0.1, "miscalibration": 0.1}
DUMP = """
compute sigma all equipot/uncertainty
group few id 1:10
compute few few equipot/uncertainty
thermo_style custom step pe c_sigma c_few
thermo_modify format float %.15g
dump one all custom 1 first.dump id c_sigma c_few
dump_modify one sort id format float %.15g
"""


def factor(width: int) -> np.ndarray:
    return np.tril(np.random.default_rng(0).normal(size=(width, width)))


@pytest.fixture(scope="module", params=["nequip", "allegro"])
def uncertain(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("uncertain") / "model.pt"
    write_torchscript(
        build_potential(MODELS[request.param], SPECIES, 20.0, [-4.0, -1.0], 1.0), path,
        synthetic_structures(SPECIES, CUTOFF), source="synthetic structures", model_type=request.param,
        atomic_energies=[-4.0, -1.0], weights="ema", validation={}, config="",
        measure=lambda program: Rigidity(factor(program.feature_width), FIGURES),
    )  # fmt: skip
    return path


def test_as_in_ase(lammps, uncertain, tmp_path):
    write_data(tmp_path / "atoms.data", oxide(triclinic=True))
    atoms = ase.io.read(tmp_path / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    atoms = atoms[np.argsort(atoms.arrays["id"])]
    atoms.calc = EquipotCalculator(uncertain, device="cpu")
    energy, right = atoms.get_potential_energy(), atoms.calc.results
    types = [SPECIES.index(symbol) for symbol in atoms.symbols]
    features = Engine(uncertain).evaluate(atoms.positions, atoms.cell.array, atoms.pbc, types).features
    of_few = np.linalg.norm(factor(features.shape[1]) @ features[:10].sum(axis=0))
    for ranks, newton in ((1, "on"), (3, "on"), (4, "off")):
        thermo = lammps(setup(uncertain, before=f"newton {newton}") + DUMP + "run 0\n", ranks).thermo[0]
        assert thermo[1:] == pytest.approx([energy, right["energy_uncertainty"], of_few], rel=1e-9)
        _, each, each_of_few = read_dump(tmp_path / "first.dump")[0].T
        assert each == pytest.approx(right["energies_uncertainty"], rel=1e-9)
        assert np.array_equal(each_of_few[:10], each[:10]) and not each_of_few[10:].any()


def test_units_scale_and_runs(lammps, uncertain, tmp_path):
    """Asked for in one run only, then again; nothing else changes."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(uncertain) + "velocity all create 600 1 loop geom\nfix 1 all nve\n"
    columns = "thermo_style custom step pe c_sigma\nthermo_modify format float %.15g\nthermo 5\n"
    asked = "compute sigma all equipot/uncertainty\n" + columns + "run 10\n"
    plain = "thermo_style custom step pe pe\nuncompute sigma\nrun 5\n"  # as many columns
    found = lammps(script + asked + plain + asked, 2).thermo
    assert np.diff(found[:3, 2]).all() and (found[:, 2] != 0).all()
    metal = lammps(setup(uncertain) + asked.replace("run 10", "run 0")).thermo[0]
    assert metal[2] == pytest.approx(found[0, 2], rel=1e-9)
    real = lammps((setup(uncertain) + asked.replace("run 10", "run 0")).replace("units metal", "units real"))
    assert real.thermo[0, 2] == pytest.approx(metal[2] * 23.060547830619, rel=1e-9)
    half = "variable half equal 0.5\nfix scale all adapt 1 pair equipot scale * * v_half\n"
    scaled = lammps(setup(uncertain) + half + asked.replace("run 10", "run 0")).thermo[0]
    assert scaled[2] == pytest.approx(metal[2] / 2, rel=1e-9)


def test_asked_for_too_early(lammps, uncertain, tmp_path):
    """In a first run, and in a second one on the step where the first has ended."""
    write_data(tmp_path / "atoms.data", oxide())
    early = "compute sigma all equipot/uncertainty\nvariable v equal 1+c_sigma\n"
    early += "fix scale all adapt 1 pair equipot scale * * v_v\nrun 0\n"
    for script in (setup(uncertain), setup(uncertain) + "run 1\n"):
        result = lammps(script + early, 2, expect=None)
        assert result.returncode != 0 and "before the forces are known there" in " ".join(
            result.output.split()
        )


def test_where_there_is_none(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    one, compute = model_file("allegro"), "compute sigma all equipot/uncertainty\n"
    said = " ".join(lammps(setup(one) + compute + "run 0\n", 2, expect=None).output.split())
    assert "needs a model from 'equipot deploy --uncertainty', on a CPU" in said
    two = f"pair_style equipot\npair_coeff * * {one} {one} O Si\n"
    said = " ".join(lammps(setup(one, pair=two) + compute + "run 0\n", expect=None).output.split())
    assert "an ensemble has 'compute equipot/deviation'" in said
    bare = setup(one) + compute + "pair_style zero 4.0\npair_coeff * *\nrun 0\n"
    assert "needs one pair_style equipot" in lammps(bare, expect=None).output
    assert "found 'fast' behind it" in lammps(setup(one) + compute[:-1] + " fast\n", expect=None).output


def test_ranks_without_atoms(lammps, uncertain, tmp_path):
    """Which know no features, and must not wait elsewhere than the others; or no atoms at all."""
    atoms = oxide((1, 1, 1))
    atoms.pbc = False
    write_data(tmp_path / "atoms.data", atoms)
    alone = "change_box all boundary f f f x final -20 60 y final -20 60 z final -20 60\n"
    columns = "compute sigma all equipot/uncertainty\nthermo_style custom step pe c_sigma\n"
    columns += "thermo_modify format float %.15g\nrun 0\n"
    one, four = (lammps(setup(uncertain) + alone + columns, ranks).thermo[0] for ranks in (1, 4))
    assert four == pytest.approx(one, rel=1e-9) and one[2] > 0
    none = "delete_atoms group all\n"
    assert lammps(setup(uncertain) + none + columns, 2).thermo[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ("", None),
        ("delete_atoms group one\n", "atoms and model are others by now"),
        ("create_atoms 1 single 0.7 0.7 0.7\n", "atoms and model are others by now"),
        ("set group one type 1\n", "atoms and model are others by now"),
        ("pair_coeff * * {model} O Si\n", "atoms and model are others by now"),
        ("pair_style equipot\npair_coeff * * {model} O Si\n", "atoms and model are others by now"),
        ("pair_style zero 4.0\npair_coeff * *\n", "needs one pair_style equipot"),
    ],
)
def test_changed_between_runs(lammps, uncertain, tmp_path, between, expected):
    """What is asked for then would be of other atoms, or of a model that is gone."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(uncertain) + "group one id 1\ncompute sigma all equipot/uncertainty\nrun 0\n"
    script += between.format(model=uncertain) + "write_dump all custom one.dump id c_sigma\n"
    result = lammps(script, 2, expect=None)
    assert (result.returncode == 0) == (expected is None), result.output[-2000:]
    assert expected is None or expected in " ".join(result.output.split())
