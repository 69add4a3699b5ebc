"""Files that ASE reads: output of programs whose electrons may not converge, and files nobody knows."""

import json

import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Hartree, Rydberg
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config.data import LabelsConfig, Parsing
from equipot.data import read_frames
from equipot.data.structures import read_structure

KEEP = Parsing(keep_unconverged=True)
ENERGY = LabelsConfig(forces=None)


def gaussian(*steps: tuple[float, str, str]) -> str:
    """A log with a structure for each energy (Hartree), and what stands before and after it."""
    text = " Entering Gaussian System, Link 0=g16\n"
    for i, (energy, before, after) in enumerate(steps):
        rule = 69 * "-"
        rows = "".join(
            f" {n + 1:6} {1:10} {0:11} {0.0:15.6f} {0.0:11.6f} {x:11.6f}\n"
            for n, x in enumerate((0, 0.7 + i / 10))
        )
        scf = f"{before} SCF Done:  E(RHF) =  {energy}     A.U. after   10 cycles\n{after}"
        text += (
            f"                          Input orientation:\n {rule}\n Center Atomic Atomic Coordinates\n"
            f" Number\n {rule}\n{rows} {rule}\n{scf}"
        )
    return text


def test_gaussian(tmp_path, caplog):
    steps = [
        (-1.10, "", ""),
        (-1.05, " >>>>>>>>>> Convergence criterion not met.\n", ""),
        (-1.02, "", " Convergence failure -- run terminated.\n"),
    ]
    (tmp_path / "a.log").write_text(gaussian(*steps))
    assert [frame.energy / Hartree for frame in read_frames(tmp_path / "a.log", ENERGY)] == [-1.10]
    assert "2 of 3 frames did not converge (1, 2; the first is 0), left out." in caplog.text
    frames = read_frames(tmp_path / "a.log", ENERGY, parsing=KEEP)
    assert [frame.energy / Hartree for frame in frames] == pytest.approx([-1.10, -1.05, -1.02], rel=1e-12)


def test_a_step_that_did_not_converge_is_a_structure_to_start_from(tmp_path):
    failure = (-1.05, "", " Convergence failure -- run terminated.\n")
    (tmp_path / "a.log").write_text(gaussian(failure, (-1.10, "", ""), failure))
    for suffix, distance in (("@0", 0.7), ("@1", 0.8), ("", 0.9)):
        assert read_structure(f"{tmp_path}/a.log{suffix}").get_distance(0, 1) == pytest.approx(distance)


def test_commands_keep_them_if_told(tmp_path):
    (tmp_path / "a.log").write_text(gaussian((-1.10, "", ""), (-1.05, "", " Convergence failure\n")))
    for options, count in (((), 1), (("--keep-unconverged",), 2)):
        command = ["data", "inspect", str(tmp_path / "a.log"), "--json", *options]
        [summary] = json.loads(CliRunner().invoke(app, command).stdout)
        assert summary["num_frames"] == count


def espresso(*steps: tuple[float | None, bool]) -> str:
    """Output of pw.x with a structure for each energy (Ry; None: not printed) and whether it converged."""
    text = (
        "     Program PWSCF v.7.2 starts\n     bravais-lattice index     =            0\n"
        "     celldm(1)=  10.000000  celldm(2)=   0.000000  celldm(3)=   0.000000\n"
        "     number of atoms/cell      =            1\n"
        "     number of atomic types    =            1\n     number of k points=     1\n"
        "                       cart. coord. in units 2pi/alat\n"
        "        k(    1) = (   0.0000000   0.0000000   0.0000000), wk =   2.0000000\n"
        "     crystal axes: (cart. coord. in units of alat)\n"
        "               a(1) = (   1.000000   0.000000   0.000000 )\n"
        "               a(2) = (   0.000000   1.000000   0.000000 )\n"
        "               a(3) = (   0.000000   0.000000   1.000000 )\n\n"
        "     atomic species   valence    mass     pseudopotential\n"
        "        H   1.00     1.00800     H ( 1.00)\n\n"
        "   Cartesian axes\n\n     site n.     atom                  positions (alat units)\n"
        "         1           H   tau(   1) = (   0.0000000   0.0000000   0.0000000  )\n\n"
    )
    for i, (energy, converged) in enumerate(steps):
        if i:
            text += f"ATOMIC_POSITIONS (angstrom)\nH 0.0 0.0 {0.1 * i}\n\n"
        if energy is not None:
            text += f"!    total energy              =    {energy:.8f} Ry\n"
        words = "has been achieved in   9" if converged else "NOT achieved after 100"
        text += (
            f"     convergence {words} iterations\n     Forces acting on atoms (cartesian axes, Ry/au):\n\n"
        )
        text += "     atom    1 type  1   force =     0.00000000    0.00000000    0.00000000\n\n"
    return text


def test_espresso(tmp_path, caplog):
    (tmp_path / "pw.out").write_text(espresso((-1.0, True), (-0.9, False), (None, False), (-0.8, True)))
    frames = read_frames(tmp_path / "pw.out")
    assert [frame.index for frame in frames] == [0, 3]
    assert [frame.energy / Rydberg for frame in frames] == pytest.approx(
        [-1.0, -0.8], rel=1e-7
    )  # CODATA of another year
    assert "2 of 4 frames did not converge (1, 2; the first is 0), left out." in caplog.text


def test_orca(tmp_path, caplog, failing):
    text = "                                 * O   R   C   A *\n  ORCA SCF GRADIENT CALCULATION\n"
    for energy in ("-1.10", "(Wavefunction not fully converged!)  -1.05", "-1.02"):
        text += f"""
Number of atoms                             ...      2
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  H      0.000000    0.000000    0.000000
  H      0.000000    0.000000    0.740000

FINAL SINGLE POINT ENERGY {energy}
ORCA GEOMETRY RELAXATION STEP
"""
    (tmp_path / "a.out").write_text(text + "THE OPTIMIZATION HAS CONVERGED\n")
    frames = read_frames(tmp_path / "a.out", ENERGY)
    assert [(frame.index, frame.energy / Hartree) for frame in frames] == [(0, -1.10), (2, -1.02)]
    assert "1 of 3 frames did not converge (1; the first is 0), left out." in caplog.text
    assert "frame 1 (the first is 0): 'energy' is nan" in failing(tmp_path / "a.out", ENERGY, parsing=KEEP)


def test_free_energy_of_a_trajectory_is_said_and_can_be_chosen(water, write, caplog):
    caplog.set_level("INFO", logger="equipot")
    for atoms in water:
        energy = atoms.info["my_energy"]
        atoms.calc = SinglePointCalculator(atoms, energy=energy, free_energy=energy - 0.3)
    path = write(water, "a.traj")
    assert read_frames(path, ENERGY)[0].energy == -14.0
    assert read_frames(path, LabelsConfig(energy="free_energy", forces=None))[0].energy == -14.3
    assert "in 10 of 10 frames `free_energy` differs from `energy`, by up to 100 meV/atom" in caplog.text


def test_symbol_that_is_no_element(tmp_path, failing):
    (tmp_path / "POSCAR").write_text("a\n1\n4 0 0\n0 4 0\n0 0 4\nOw\n1\nDirect\n0 0 0\n")
    message = failing(tmp_path / "POSCAR", required=())
    assert message.startswith(
        f"{tmp_path / 'POSCAR'}, frame 0 (the first is 0): 'Ow' is not a chemical element"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "input.data",
            "begin\nlattice 4 0 0\natom 0 0 0 Cu 0 0 0 0 0\nenergy -1\nend\n",
            "is RuNNer's or n2p2's",
        ),
        ("train.cfg", "BEGIN_CFG\n Size\n 1\n", "is a .cfg of MTP"),
        (
            "mp.json",
            json.dumps([{"@module": "pymatgen.core.structure", "sites": []}]),
            "JSON, but no ASE database",
        ),
        ("mp.json", json.dumps({"structure": {}}), "JSON, but no ASE database"),
        (
            "cp2k.out",
            " DBCSR| CPU Multiplication driver\n",
            "ASE takes it for Quantum espresso out file, and finds no frame",
        ),
        ("a.what", "words\n", "ASE does not recognise the file format"),
    ],
)
def test_files_nobody_reads_say_what_to_do(tmp_path, failing, name, content, words):
    (tmp_path / name).write_text(content)
    message = failing(tmp_path / name)
    assert message.startswith(str(tmp_path / name)) and words in message
    assert "ase.io.write('frames.xyz', structures)" in message and "truncated" not in message


def test_a_healthy_beginning_is_told_from_what_breaks_off(water, write, failing):
    path = write(water, "a.traj")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    message = failing(path, required=())
    assert "cannot be read as a file for ASE" in message and "not what its name says" not in message
