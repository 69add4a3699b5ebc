"""VASP output: files made here with the elements that ASE looks at, in VASP's own layout; and real ones."""

import bz2
import gzip
import lzma
import re
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest

from equipot.config.data import LabelsConfig, Parsing, Source
from equipot.data import read_frames, read_sources
from equipot.data.digests import RememberedDigests
from equipot.units import EV_A3_TO_GPA

FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
KBAR = np.array([[-10.0, 1, 2], [1, -20, 3], [2, 3, -30]])  # VASP's sign: positive when compressed


def rows(matrix) -> str:
    return "".join(f"<v> {a} {b} {c} </v>" for a, b, c in matrix)


def structure(x: float) -> str:
    basis = f'<crystal><varray name="basis">{rows(4 * np.eye(3))}</varray></crystal>'
    return f'{basis}<varray name="positions">{rows([[0, 0, 0], [x, 0.25, 0.25]])}</varray>'


def calculation(energy: float, x: float) -> str:
    energies = "".join(
        f'<i name="{name}">{energy}</i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    )
    return (
        f"<calculation><scstep><energy>{energies}</energy></scstep>\n"
        f"<structure>{structure(x)}</structure>\n"
        f'<varray name="forces">{rows(FORCES)}</varray>\n<varray name="stress">{rows(KBAR)}</varray>\n'
        f"<energy>{energies}</energy></calculation>\n"
    )


def vasprun(energies: list[float]) -> str:
    atoms = "<rc><c>Si</c><c>1</c></rc>" * 2
    steps = "".join(calculation(energy, 0.25 + 0.01 * i) for i, energy in enumerate(energies))
    return (
        "<modeling><incar></incar><kpoints></kpoints><parameters></parameters>"
        f'<atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>\n'
        f'<structure name="initialpos">{structure(0.25)}</structure>\n{steps}</modeling>\n'
    )


def test_vasprun_in_a_folder(tmp_path):
    (tmp_path / "vasprun.xml").write_text(vasprun([-1.0, -2.0]))
    frames = read_frames(tmp_path)
    assert [frame.energy for frame in frames] == [-1.0, -2.0]
    assert frames[0].atomic_numbers.tolist() == [14, 14] and frames[0].pbc.all()
    np.testing.assert_allclose(frames[1].positions[1], [1.04, 1.0, 1.0], rtol=1e-12)
    assert frames[1].forces.tolist() == FORCES
    # 1 kbar = 0.1 GPa; positive under tension here. 1e-6: rounding of the constant of two CODATA versions
    np.testing.assert_allclose(frames[0].stress * EV_A3_TO_GPA, -0.1 * KBAR, rtol=1e-6)


@pytest.mark.parametrize("name", ["vasprun.xml", "vasprun_5.xml", "vasprun.xml.gz"])
def test_vasprun_by_name(tmp_path, name):
    content = vasprun([-1.0]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [frame.energy for frame in read_frames(tmp_path / name)] == [-1.0]


def test_vasprun_of_a_killed_calculation_gives_its_complete_steps_and_says_so(tmp_path, caplog):
    text = vasprun([-1.0, -2.0, -3.0])
    (tmp_path / "vasprun.xml").write_text(text[: text.rindex('<varray name="forces">')])
    assert [frame.energy for frame in read_frames(tmp_path)] == [-1.0, -2.0]
    assert "the calculation did not end (no '</modeling>')" in caplog.text


def test_vasprun_without_any_step(tmp_path, failing):
    (tmp_path / "vasprun.xml").write_text("<modeling><incar></in")
    message = failing(tmp_path)
    assert message.startswith(f"{tmp_path}, frame 0") and "VASP output" in message


@pytest.fixture
def real_files():
    """VASP output that ASE ships for its own tests."""
    folder = Path(ase.__file__).parent / "test" / "testdata" / "vasp"
    if not (folder / "OUTCAR_example_1").is_file():
        pytest.skip("this ASE comes without its test data")
    return folder


def test_real_outcar_against_its_own_lines(real_files):
    text = (real_files / "OUTCAR_example_1").read_text()
    [frame] = read_frames(real_files / "OUTCAR_example_1")
    energy = re.findall(r"free  energy   TOTEN  = +(\S+)", text)[-1]
    assert frame.energy == float(energy)
    table = text.split("TOTAL-FORCE (eV/Angst)")[-1].splitlines()[2 : 2 + frame.num_atoms]
    numbers = np.array([line.split() for line in table], dtype=float)
    assert frame.positions.tolist() == numbers[:, :3].tolist()
    assert frame.forces.tolist() == numbers[:, 3:].tolist()
    # XX YY ZZ XY YZ ZX, kbar, positive under compression
    xx, yy, zz, xy, yz, zx = map(float, re.findall(r"in kB((?: +\S+){6})", text)[-1].split())
    expected = -0.1 * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
    # rounding of the constant of two CODATA versions
    np.testing.assert_allclose(frame.stress * EV_A3_TO_GPA, expected, rtol=1e-6)


def test_outcar_cut_before_its_first_step_is_complete(real_files, tmp_path, failing, caplog):
    text = (real_files / "OUTCAR_example_1").read_text()
    (tmp_path / "OUTCAR").write_text(text[: len(text) // 2])
    assert failing(tmp_path) == f"{tmp_path} contains no frames (read as VASP output)."
    assert "the calculation did not end (no 'General timing and accounting')" in caplog.text


def test_real_vasprun(real_files):
    text = (real_files / "vasprun_pstress.xml").read_text()
    frames = read_frames(real_files / "vasprun_pstress.xml")
    assert len(frames) == text.count("<calculation>") and all(f.stress is not None for f in frames)


# Convergence, energies and folders


def scsteps(changes: list[float], energy: float) -> str:
    """Electronic steps whose free energy goes to ``energy`` by these changes."""
    values = [energy - sum(changes[i + 1 :]) for i in range(len(changes))]
    names = {"e_fr_energy": 0.0, "e_wo_entrp": 0.2, "e_0_energy": 0.1}
    steps = ("".join(f'<i name="{n}">{v + shift}</i>' for n, shift in names.items()) for v in values)
    return "".join(f"<scstep><energy>{step}</energy></scstep>\n" for step in steps)


def vasprun_of(steps: list[list[float]], nelm: int = 3, ediff: float = 1e-4) -> str:
    """One with a step of energy −1, −2, ... for each list of changes."""
    limits = f'<i type="int" name="NELM">{nelm}</i><i name="EDIFF">{ediff}</i>'
    text = vasprun([-1.0 - i for i in range(len(steps))]).replace(
        "<parameters></parameters>", f"<parameters>{limits}</parameters>"
    )
    parts = re.split(r"<scstep>.*?</scstep>\n", text)
    scf = [scsteps(changes, -1.0 - i) for i, changes in enumerate(steps)]
    return "".join(part + step for part, step in zip(parts, [*scf, ""], strict=True))


def outcar_of(steps: list[tuple[int, str]], nelm: int = 3) -> str:
    """One with a step of energy −1, −2, ... for each number of electronic steps and remark at their end."""
    head = (
        " POTCAR:    PAW_PBE Si 05Jan2001\n POTCAR:    PAW_PBE Si 05Jan2001\n   ions per type =        2\n"
        "   ISPIN  =      1    spin polarized calculation?\n"
        "   k-points   NKPTS =      1   k-points in BZ     NKDIM = 1   number of bands    NBANDS=      4\n"
        " k-points in reciprocal lattice and weights: G\n   0.0 0.0 0.0  1.0\n"
        f"   NELM   = {nelm:6};   NELMIN=  2; NELMDL= -5     # of ELM steps\n"
    )
    return head + "".join(
        outcar_step(-1.0 - i, i + 1, count, remark) for i, (count, remark) in enumerate(steps)
    )


def outcar_step(energy: float, ionic: int, count: int, remark: str, learned: str = "") -> str:
    rule = 40 * "-"
    scf = "".join(f"{rule} Iteration {ionic:4}({i + 1:4})  {rule}\n" for i in range(count))
    table = "".join(f" {x} 0.0 0.0   {f[0]} {f[1]} {f[2]}\n" for x, f in zip((0.0, 1.5), FORCES, strict=True))
    cell = "".join(f"{4.0 * (i == 0)} {4.0 * (i == 1)} {4.0 * (i == 2)} 0 0 0\n" for i in range(3))
    name = f"free  energy{' ML' if learned else '  '} TOTEN "
    stress = "ML FORCE on cell" if learned else "FORCE on cell =-STRESS in cart. coord.  units (eV):"
    terms = 13 * "  Hartree 0 0 0 0 0 0\n"  # what the stress is the sum of
    return (
        f"{scf}{remark}\n  {stress}\n{terms}  in kB     -10.0 -20.0 -30.0 1.0 3.0 2.0\n"
        f" VOLUME and BASIS-vectors are now :\n {rule}\n  energy-cutoff  : 400\n  volume of cell : 64.0\n"
        f"      direct lattice vectors                 reciprocal lattice vectors\n{cell}"
        f" POSITION                    TOTAL-FORCE (eV/Angst){learned}\n {rule}\n{table} {rule}\n"
        f"  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n {rule}\n  {name} = {energy} eV\n\n"
        f"  energy  without entropy= {energy + 0.2}  energy(sigma->0) = {energy + 0.1}\n"
    )


REACHED = "------------ aborting loop because EDIFF is reached ------------"
NOT_REACHED = "----------- aborting loop EDIFF was not reached (unconverged)  ----------"
END = " General timing and accounting informations for this job:\n"
FILES = {
    # reached late and early, not reached, not reached
    "vasprun.xml": vasprun_of([[1, 1, 1e-5], [1, 1e-5], [1, 1, 0.1], [1, 1, -1e-3]]),
    "OUTCAR": outcar_of([(3, REACHED), (2, REACHED), (3, ""), (3, NOT_REACHED)]) + END,
}


@pytest.mark.parametrize("name", FILES)
def test_steps_that_did_not_converge_are_left_out_and_named(tmp_path, caplog, name):
    (tmp_path / name).write_text(FILES[name])
    frames = read_frames(tmp_path)
    assert [(frame.index, frame.energy) for frame in frames] == [(0, -1), (1, -2)]
    assert caplog.messages == [
        f"{tmp_path}: 2 of 4 frames did not converge (2, 3; the first is 0), left out. "
        "`keep_unconverged: true` in `data` or --keep-unconverged uses them."
    ]
    frames = read_frames(tmp_path, parsing=Parsing(keep_unconverged=True))
    assert [frame.energy for frame in frames] == [-1, -2, -3, -4]
    assert caplog.messages[-1].endswith(
        "(2, 3; the first is 0); used all the same, as keep_unconverged says."
    )


@pytest.mark.parametrize("name", FILES)
def test_frames_keep_their_numbers_after_one_that_is_left_out(tmp_path, name):
    files = {
        "vasprun.xml": vasprun_of([[1, 1, 1], [1, 1e-5]]),
        "OUTCAR": outcar_of([(3, ""), (1, REACHED)]) + END,
    }
    (tmp_path / name).write_text(files[name])
    assert [(frame.index, frame.energy) for frame in read_frames(tmp_path)] == [(1, -2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cache_keeps_the_numbers_too(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("equipot.data.store.build.available_cores", lambda: workers)
    (tmp_path / "OUTCAR").write_text(
        outcar_of([(1, REACHED), (3, ""), (3, ""), (1, REACHED), (1, REACHED)]) + END
    )
    source, cache = Source((tmp_path / "OUTCAR",)), RememberedDigests(tmp_path / "cache")
    for wanted, keep in (([0, 3, 4], False), ([0, 1, 2, 3, 4], True), ([0, 3, 4], False)):
        pool = read_sources([replace(source, parsing=Parsing(keep_unconverged=keep))], 3.0, cache)
        assert [index for _, index in pool.ids()] == wanted
        assert [(frame.index, frame.energy) for frame in pool] == [(i, -1.0 - i) for i in wanted]


@pytest.mark.parametrize("name", FILES)
def test_nothing_converged(tmp_path, failing, name):
    files = {"vasprun.xml": vasprun_of([[1, 1, 1]]), "OUTCAR": outcar_of([(3, "")]) + END}
    (tmp_path / name).write_text(files[name])
    assert "1 of 1 frame did not converge (0; the first is 0), so none is left." in failing(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("key", "shift"),
    [("energy", 0), ("free_energy", 0), ("energy_without_entropy", 0.2), ("energy_sigma0", 0.1)],
)
def test_the_energy_is_the_one_of_the_forces_unless_another_is_named(tmp_path, name, key, shift):
    (tmp_path / name).write_text(FILES[name])
    frames = read_frames(tmp_path / name, LabelsConfig(energy=key))
    assert [frame.energy for frame in frames] == pytest.approx([-1 + shift, -2 + shift], abs=1e-12)


def test_outcar_and_vasprun_give_the_same(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    one, other = (read_frames(tmp_path / name)[0] for name in FILES)
    np.testing.assert_allclose(one.stress, other.stress, rtol=1e-6)
    assert one.forces.tolist() == other.forces.tolist() and one.cell.tolist() == other.cell.tolist()


def test_dpdata_finds_the_same_values(tmp_path):
    dpdata = pytest.importorskip("dpdata")
    text = outcar_of([(3, REACHED), (2, REACHED)]).replace(
        " in kB", "FORCE on cell =-STRESS\n" * 0 + " in kB"
    )
    (tmp_path / "OUTCAR").write_text(text + END)
    data = dpdata.LabeledSystem(str(tmp_path / "OUTCAR"), "vasp/outcar", convergence_check=False).data
    frames = read_frames(tmp_path / "OUTCAR")
    assert data["energies"].tolist() == [frame.energy for frame in frames]
    np.testing.assert_array_equal(data["forces"][1], frames[1].forces)
    np.testing.assert_allclose(data["virials"][1], -frames[1].stress * 64.0, rtol=1e-4)  # its kbar: 4 digits


def test_machine_learned_steps_are_left_out(tmp_path, caplog, failing):
    learned = outcar_step(-5.0, 2, 0, "", learned=" (ML)")
    text = outcar_of([(2, REACHED)]) + learned + outcar_step(-2.0, 3, 2, REACHED) + END
    (tmp_path / "OUTCAR").write_text(text)
    assert [(frame.index, frame.energy) for frame in read_frames(tmp_path)] == [(0, -1), (2, -2)]
    assert "1 of 3 frames are of VASP's machine-learned force field, not of a calculation (1;" in caplog.text
    (tmp_path / "OUTCAR").write_text(outcar_of([]) + learned + END)
    assert "all its steps are of VASP's machine-learned force field" in failing(tmp_path)


@pytest.mark.parametrize(
    ("ending", "pack"), [("bz2", bz2.compress), ("xz", lzma.compress), ("gz", gzip.compress)]
)
@pytest.mark.parametrize("name", FILES)
def test_packed(tmp_path, name, ending, pack):
    (tmp_path / f"{name}.{ending}").write_bytes(pack(FILES[name].encode()))
    assert [frame.energy for frame in read_frames(tmp_path)] == [-1, -2]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "is empty"), ("<modeling><incar></in", "has no complete step"),
     (FILES["vasprun.xml"][:-400], "breaks off")],
)  # fmt: skip
def test_a_bad_vasprun_beside_a_good_outcar(tmp_path, caplog, content, words):
    (tmp_path / "vasprun.xml").write_text(content)
    (tmp_path / "OUTCAR").write_text(FILES["OUTCAR"])
    assert [frame.energy for frame in read_frames(tmp_path)] == [-1, -2]
    assert f"{tmp_path / 'vasprun.xml'} {words}; OUTCAR is read instead." in caplog.text
