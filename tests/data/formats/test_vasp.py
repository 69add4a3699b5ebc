"""VASP output: files made here with the elements that ASE looks at, in VASP's own layout; and real ones."""

import gzip
import re
from pathlib import Path

import ase
import numpy as np
import pytest

from equipot.data import read_frames
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
