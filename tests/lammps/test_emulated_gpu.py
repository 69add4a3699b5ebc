"""LAMMPS on an emulated GPU (tests/ops/gpu) gives what it gives on a CPU."""

import re

import numpy as np
import pytest
from lammps_input import oxide, read_dump, setup, write_data
from test_guards import closest, warnings, with_distances

TOLERANCE = 1e-10
ATOMS = """
compute energies all pe/atom
compute virials all stress/atom NULL virial
dump one all custom 1 {where}.dump id fx fy fz c_energies c_virials[*] {more}
dump_modify one sort id format float %.15g
run 0
"""
# LAMMPS's neighbor lists are new after three steps, the GPU's also when atoms have moved.
MELT = """
neigh_modify every 3 delay 0 check no
velocity all create 20000 1 loop geom
fix 1 all nve
thermo 1
run 7
"""


@pytest.fixture
def on_both(lammps, emulated_lammps, tmp_path, monkeypatch):
    """Results of a script on the CPU and on the GPU; ``{where}`` is its name in the script."""

    def run(model, script, ranks=1, atoms=None, **options):
        write_data(tmp_path / "atoms.data", oxide((1, 1, 2)) if atoms is None else atoms)
        found = []
        for where in ("cpu", "cuda"):
            style = f"pair_style equipot device {where}"
            text = setup(model, **options).replace("pair_style equipot", style).replace("{where}", where)
            with monkeypatch.context() as context:
                if where == "cuda":
                    for name, value in emulated_lammps.items():
                        context.setenv(name, value)
                found.append(lammps(text + script.replace("{where}", where), ranks))
        assert "rank 0: cuda:0" in found[1].output or "ranks 0-" in found[1].output, found[1].output
        assert ": cuda:0" in found[1].output and "cuda" not in found[0].output
        return found

    return run


def assert_same_atoms(folder):
    right, found = (read_dump(folder / f"{where}.dump") for where in ("cpu", "cuda"))
    for columns in (slice(1, 4), slice(4, 5), slice(5, None)):
        a, b = found[..., columns], right[..., columns]
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max())


def assert_same_thermo(cpu, gpu, tolerance=TOLERANCE):
    off = np.abs(gpu.thermo - cpu.thermo).max(axis=0) / np.abs(cpu.thermo).max(axis=0)
    assert off.max() < tolerance, off


@pytest.mark.parametrize(
    ("name", "ranks", "newton"),
    [("nequip", 1, "on"), ("nequip", 3, "off"), ("allegro", 2, "off")],
)
def test_atoms_and_a_trajectory(on_both, model_file, tmp_path, name, ranks, newton):
    centroid = name == "allegro"
    script = ("compute centroid all centroid/stress/atom NULL virial\n" if centroid else "") + ATOMS
    script = script.replace("{more}", "c_centroid[*]" if centroid else "") + "undump one\n"
    cpu, gpu = on_both(
        model_file(name), script + MELT, ranks, oxide((1, 1, 2), triclinic=ranks == 3),
        before=f"newton {newton}",
    )  # fmt: skip
    assert_same_atoms(tmp_path)
    assert_same_thermo(cpu, gpu, 100 * TOLERANCE)  # what rounding grows to
    assert len(gpu.thermo) == 9


@pytest.mark.parametrize("ranks", [1, 2])
def test_atoms_taken_out_and_a_rank_without_any(on_both, model_file, tmp_path, ranks):
    """What LAMMPS alone has among the places; a slab of which the second rank has nothing."""
    atoms = oxide((1, 2, 2))
    atoms.cell[0] *= 4
    atoms.positions[:, 0] += 1.0
    out = "group out id 3 4 20\nneigh_modify exclude group out all\n"
    script = ATOMS.replace("{more}", "")
    on_both(model_file("allegro"), out + script, ranks, atoms, before="processors * 1 1")
    assert_same_atoms(tmp_path)
    assert not read_dump(tmp_path / "cuda.dump")[0, [2, 3, 19], 1:5].any()


def test_types_that_change_between_neighbor_lists(on_both, model_file):
    script = "thermo 1\nrun 1\nset atom 1*5 type 2\nrun 1 pre no\nset atom 1*5 type 1\nrun 1 pre no post no\n"
    cpu, gpu = on_both(model_file("allegro"), script, 2)
    assert_same_thermo(cpu, gpu)
    assert np.ptp(cpu.thermo[:, 1]) > 0.1


def test_beside_another_style(on_both, model_file):
    """By LAMMPS's list: another style could take pairs away."""
    pair = (
        "pair_style hybrid/overlay equipot lj/cut 3.0\n"
        f"pair_coeff * * equipot {model_file('allegro')} O Si\npair_coeff 1 2 lj/cut 0.01 1.0\n"
    )
    cpu, gpu = on_both(None, "run 2\n", 2, pair=pair.replace("equipot lj", "equipot device {where} lj"))
    assert_same_thermo(cpu, gpu)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_too_close_is_said_as_on_a_cpu(on_both, model_file, tmp_path, ranks):
    """Once for each pair of elements: the GPU sees that there is one, LAMMPS's list says which."""
    atoms = oxide((1, 1, 2))
    seen = {"O-Si": closest(atoms, "O", "Si") + 0.01, "O-O": closest(atoms, "O", "O") - 0.01, "Si-Si": 0.5}
    model = with_distances(model_file("allegro"), tmp_path / "watched.pt", seen)
    cpu, gpu = on_both(model, "run 0\n" + MELT, ranks)
    said = [re.sub(r" \(\S*/.*", "", line) for line in warnings(gpu)]
    assert said == [re.sub(r" \(\S*/.*", "", line) for line in warnings(cpu)] and len(said) == 2


def test_what_a_gpu_does_not_do_is_refused(lammps, with_gpu, model_file):
    heat = "compute c all centroid/stress/atom NULL virial\nfix 1 all ave/atom 1 1 1 c_c[1]\nrun 1\n"
    output = lammps(setup(model_file("nequip")) + heat, expect=1).output
    assert "heat virials of a model that passes messages are computed on a CPU only" in output
    pair = f"pair_style equipot device cuda:1\npair_coeff * * {model_file('nequip')} O Si\n"
    output = lammps(setup(None, pair=pair), expect=1).output
    assert "device cuda:1: this node has 1 GPUs" in output


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_ranks_with_and_without_a_gpu(lammps, with_gpu, model_file, monkeypatch, name):
    """Exchange the same rows."""
    text = setup(model_file(name))
    right = lammps(text.replace("pair_style equipot", "pair_style equipot device cpu") + "run 2\n", 2)
    monkeypatch.setenv("EMULATOR_RANK", "0")
    found = lammps(text + "run 2\n", 2)
    assert "rank 0: cuda:0" in found.output and "rank 1: cpu" in found.output
    assert_same_thermo(right, found)


@pytest.mark.parametrize("wanted", ["auto", "host", "gpu"])
def test_where_rows_are_exchanged(lammps, with_gpu, model_file, wanted):
    """The MPI at hand knows no GPU and says so; addresses of the emulated one it can take."""
    text = setup(model_file("nequip"))
    right = lammps(text.replace("pair_style equipot", "pair_style equipot device cpu") + "run 2\n", 3)
    found = lammps(text.replace("pair_style equipot", f"pair_style equipot exchange {wanted}") + "run 2\n", 3)
    said = {
        "auto": "by way of the host's memory, since MPI does not say that it takes a GPU's",
        "host": "by way of the host's memory ('exchange host')",
        "gpu": "from GPU to GPU by MPI",
    }
    assert f"  exchange: {said[wanted]}\n" in found.output and "exchange:" not in right.output
    assert_same_thermo(right, found)
