"""`auto`: what is chosen, what stays, and that a training goes on with what was chosen at its beginning."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from equipot.config import TrainingConfig, config_from_dict, load_config
from equipot.errors import ConfigError, TrainingError
from equipot.run_directory import RunDirectory
from equipot.training import auto
from equipot.training.ensemble import train_ensemble
from equipot.training.preparation import prepare
from equipot.training.run import train


def labelled(atoms: Atoms, seed: int, stress: bool = False, sigma: float = 2.0, rattle: float = 0.1) -> Atoms:
    atoms.rattle(rattle, rng=np.random.default_rng(seed))
    atoms.calc = LennardJones(sigma=sigma, epsilon=0.2, rc=2 * sigma, smooth=True)
    found = atoms.copy()
    found.info["energy"], found.arrays["forces"] = atoms.get_potential_energy(), atoms.get_forces()
    if stress:
        found.info["stress"] = atoms.get_stress()
    return found


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """60 frames of 9 atoms."""
    path = tmp_path_factory.mktemp("auto") / "molecules.xyz"
    grid = 2.2 * np.array([[x, y, 0] for x in range(3) for y in range(3)], dtype=float)
    ase.io.write(path, [labelled(Atoms("C3O3H3", grid), seed) for seed in range(60)])
    return path


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto") / "crystals.xyz"
    cells = [labelled(bulk("Cu", a=3.6, cubic=True), seed, stress=True) for seed in range(30)]
    ase.io.write(path, cells)
    return path


@pytest.fixture
def clock(monkeypatch):
    """An epoch takes 1 s times channels × layers × (l_max + 1) / 100, and no test depends on the machine."""

    def epoch(config, datasets, device):
        model = config.model
        steps = -(-len(datasets.train) // config.training.batch_size)
        channels = max(model.channels) if isinstance(model.channels, tuple) else model.channels
        return steps, channels * model.layers * (model.l_max + 1) / 100

    monkeypatch.setattr(auto, "_epoch", epoch)


def make(path, directory, **sections):
    raw = {
        "data": {"train": str(path), "validation": 10, "checks": "off"},
        "run": {"directory": str(directory)},
    }
    return config_from_dict(raw | {"model": "auto", "training": "auto"} | sections)


def test_everything_is_chosen_from_the_data(molecules, crystals, tmp_path, clock):
    of_molecules = prepare(make(molecules, tmp_path)).config
    of_crystals = prepare(make(crystals, tmp_path)).config
    for config in (of_molecules, of_crystals):
        assert not config.model.auto
        assert not config.training.auto
        assert config.training.max_minutes == 60
        assert config.training.schedule.in_time
    assert of_molecules.training.batch_size == 2  # 50 frames: no more, or an epoch has too few steps
    assert of_molecules.model.cutoff == 5.0
    assert of_molecules.model.parity is False
    assert of_molecules.training.loss.stress == 0
    assert of_crystals.training.loss.stress > 0
    assert 4.0 <= of_crystals.model.cutoff <= 5.0


def test_a_step_has_fewer_atoms_of_molecules_than_of_crystals(tmp_path, clock):
    """150 frames of 20 atoms, of which the steps of an epoch are no limit."""
    grid = 2.2 * np.array([[x, y, 0] for x in range(4) for y in range(5)], dtype=float)
    frames = [labelled(Atoms("C20", grid, cell=[15, 15, 15]), seed) for seed in range(150)]
    found = {}
    for periodic in (False, True):
        for atoms in frames:
            atoms.pbc = periodic
        path = tmp_path / f"{periodic}.xyz"
        ase.io.write(path, frames)
        found[periodic] = prepare(make(path, tmp_path)).config.training
    assert [found[periodic].batch_size for periodic in (False, True)] == [2, 7]  # 40 and 135 atoms
    assert found[True].validation_batch_size == 27


def test_the_cutoff_follows_the_density(tmp_path, clock, caplog):
    """Caesium, with 2 neighbors within 5 Å or so, and diamond, with 90; the data are spoken of once."""
    caplog.set_level("INFO", "equipot")
    chosen = {}
    for name, atoms, sigma in (
        ("Cs", bulk("Cs", cubic=True), 4.5),
        ("C", bulk("C", a=3.567, cubic=True), 1.4),
    ):
        path = tmp_path / f"{name}.xyz"
        frames = [labelled(atoms.copy(), seed, sigma=sigma) for seed in range(30)]
        for frame in frames:
            frame.info["dipole"] = np.zeros(3)  # not read
        ase.io.write(path, frames)
        prepared = prepare(make(path, tmp_path))
        chosen[name] = prepared.config.model.cutoff
        assert prepared.datasets.train.cutoff == chosen[name]
    assert chosen == {"C": 4.5, "Cs": 7.0}
    assert sorted(message.split(":")[0] for message in caplog.messages) == [
        str(tmp_path / f"{name}.xyz") for name in ("C", "Cs")
    ]


@pytest.mark.parametrize("offset, more", [(0.0, 0.0), (0.006, 0.0), (0.006, -0.15)])  # eV/Å³, strain of some
def test_stress_that_contradicts_the_energies_is_not_trained_on(tmp_path, clock, offset, more):
    """Of strained crystals, whose energies say what it is. A little, beside how it varies, is no reason."""
    frames, strains = [], np.random.default_rng(0).uniform(-0.03, 0.03, (40, 3))
    strains[25:] += more
    for strain in strains:
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.rattle(0.1, seed=0)
        atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
        frames.append(labelled(atoms, 0, stress=True, rattle=0.0))
        frames[-1].info["stress"][:3] += offset
    ase.io.write(tmp_path / "strained.xyz", frames)
    data = {"train": str(tmp_path / "strained.xyz"), "validation": 10, "checks": "warn"}
    prepared = prepare(make(tmp_path / "strained.xyz", tmp_path, data=data))
    assert any(finding.labels == ("stress",) for finding in prepared.datasets.findings) == (offset > 0)
    is_doubted = offset > 0 and more == 0
    assert (prepared.config.training.loss.stress == 0) == is_doubted
    assert any("doubts its labels" in line for line in prepared.choices) == is_doubted


def test_a_molecule_in_a_periodic_box_is_no_crystal(molecules, tmp_path, clock):
    boxed = ase.io.read(molecules, ":")
    for atoms in boxed:
        atoms.set_cell([15, 15, 15])
        atoms.pbc = True
    ase.io.write(tmp_path / "boxed.xyz", boxed)
    assert prepare(make(tmp_path / "boxed.xyz", tmp_path)).config.model.cutoff == 5.0


def test_given_epochs_fit_into_the_given_time(molecules, tmp_path, clock):
    """450 atoms so often are enough for large models, but these would take more than the time."""
    found = {}
    for minutes in (None, 60.0):
        training = {"auto": True, "epochs": 1200} | ({"max_minutes": minutes} if minutes else {})
        found[minutes] = prepare(make(molecules, tmp_path, training=training))
    free, limited = found[None].config.model, found[60.0].config.model
    assert free.channels * free.layers * (free.l_max + 1) / 100 * 1200 > 3600
    assert limited.channels * limited.layers * (limited.l_max + 1) / 100 * 1200 <= 3600
    assert any("1200 epochs of the next size would take" in line for line in found[60.0].choices)
    assert any("1200 epochs of 25 steps" in line for line in found[None].choices)
    assert found[None].config.training.max_minutes is None
    assert not found[None].config.training.schedule.in_time
    message = r"1200 epochs take about 38 min 24 s, with the smallest model, .* 2: 62 epochs would fit"
    with pytest.raises(TrainingError, match=message):
        prepare(make(molecules, tmp_path, training={"auto": True, "epochs": 1200, "max_minutes": 2}))


def test_a_set_without_forces(molecules, tmp_path, clock):
    """Or with zeros only, as in cells of one atom."""
    frames = ase.io.read(molecules, ":")
    for atoms in frames:
        atoms.calc.results.pop("forces")
    ase.io.write(tmp_path / "energies.xyz", frames)
    data = {"train": str(tmp_path / "energies.xyz"), "validation": 10, "checks": "off"}
    data["labels"] = {"forces": None}
    config = prepare(make(None, tmp_path, data=data)).config
    assert config.model.scale == 1.0
    assert (config.training.loss.forces, config.training.loss.energy) == (0, 1)
    with pytest.raises(
        ConfigError, match=r"training.loss.forces. is above 0, but .data.labels.forces. is null"
    ):
        make(None, tmp_path, data=data, training={"auto": True, "loss": {"forces": 1.0}})


def test_large_frames_are_validated_on_in_small_batches(molecules, tmp_path, clock):
    grid = 2.2 * np.array([[x, y, z] for x in range(4) for y in range(5) for z in range(9)], dtype=float)
    ase.io.write(tmp_path / "large.xyz", [labelled(Atoms("C180", grid), seed) for seed in range(3)])
    data = {"train": str(molecules), "validation": str(tmp_path / "large.xyz"), "checks": "off"}
    config = prepare(make(None, tmp_path, data=data)).config
    assert config.training.validation_batch_size == 3  # 540 atoms


@pytest.mark.parametrize(("ratio", "layers"), [(1.2, 4), (2.5, 3)])
def test_a_size_whose_steps_take_long_needs_more_of_them(molecules, tmp_path, monkeypatch, ratio, layers):
    """A quarter of an hour suffices for four layers if they take little more than three."""

    def epoch(config, datasets, device):
        large = {(1, 3): 0.5, (2, 3): 1.0, (2, 4): ratio}
        return 25, large.get((config.model.l_max, config.model.layers), 1e4)

    monkeypatch.setattr(auto, "_epoch", epoch)
    prepared = prepare(make(molecules, tmp_path, training={"auto": True, "max_minutes": 17}))
    assert (prepared.config.model.l_max, prepared.config.model.layers) == (2, layers)


def test_each_size_is_timed_once(molecules, tmp_path, monkeypatch):
    """Those that differ in what is given only are the same."""
    timed = []

    def epoch(config, datasets, device):
        timed.append((config.model.l_max, config.model.layers))
        return 25, 0.001

    monkeypatch.setattr(auto, "_epoch", epoch)
    model = {"type": "nequip", "auto": True, "l_max": 3, "channels": 8}
    prepared = prepare(make(molecules, tmp_path, model=model))
    assert timed == [(3, 3), (3, 4)]
    assert any("400,000 steps at most, which take 16.0 s" in line for line in prepared.choices)


def test_more_epochs_than_are_timed_where_the_schedule_ends_with_the_time(molecules, tmp_path, clock):
    """Steps may be faster than what was timed; without such a schedule the last epochs must be done."""
    found = {}
    for in_time in (True, False):
        training = {"auto": True, "schedule": {"in_time": in_time}, "max_minutes": 1}
        prepared = prepare(make(molecules, tmp_path, training=training))
        found[in_time] = prepared.config.training.epochs
        line = next(line for line in prepared.choices if "training.epochs" in line)
        assert ("there is time for 29, and for more" in line) == in_time
    assert found == {True: 37, False: 29}  # of 1.92 s, in 57
    assert prepare(make(molecules, tmp_path)).config.training.epochs > 37


def test_few_epochs_warm_up_within_the_first(molecules, tmp_path, clock):
    training = {"auto": True, "epochs": 5}
    config = prepare(make(molecules, tmp_path, training=training)).config
    assert config.training.schedule.warmup_epochs == 0.5
    assert config.training.loss.energy.from_epoch == 3


def test_too_few_epochs_for_late_energies_are_said(molecules, tmp_path, clock):
    prepared = prepare(make(molecules, tmp_path, training={"auto": True, "epochs": 3}))
    assert prepared.config.training.loss.energy == 1.0
    assert any(
        "training.loss.energy 1.0: forces teach most; so few epochs" in said for said in prepared.choices
    )


@pytest.mark.parametrize(("moved", "late"), [(28, True), (12, False)])
def test_energies_count_throughout_where_forces_vanish(moved, late, tmp_path, clock):
    """In most frames: of 40 strained crystals, whose symmetry leaves none, some have displaced atoms."""
    frames = []
    for seed in range(40):
        crystal = bulk("Cu", a=3.4 + 0.01 * seed, cubic=True)
        frames.append(labelled(crystal, seed, stress=True, rattle=0.1 if seed < moved else 0.0))
    ase.io.write(tmp_path / "strained.xyz", frames)
    prepared = prepare(make(tmp_path / "strained.xyz", tmp_path))
    energy = prepared.config.training.loss.energy
    assert (energy.end == 100.0) if late else (energy == 30.0)
    assert late or any("forces vanish in " in line for line in prepared.choices)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"channels": [4, 4]}, {"l_max": 1}),
        ({"layer_channels": [[8, 4], [8, 4, 4]]}, {"l_max": 2, "layers": 2}),
    ],
)
def test_lists_of_channels_say_the_rest(molecules, tmp_path, clock, given, expected):
    model = prepare(make(molecules, tmp_path, model={"type": "nequip", "auto": True} | given)).config.model
    assert {key: getattr(model, key) for key in expected} == expected


def test_stages_of_ones_own_wait_for_the_epochs(molecules, tmp_path, clock):
    training = {"auto": True, "swa": {"from_epoch": 150}, "max_minutes": 60}
    assert prepare(make(molecules, tmp_path, training=training)).config.training.epochs > 150
    with pytest.raises(
        ConfigError, match=r"auto. chose, training.epochs .* given: .*swa. begins after epoch 150"
    ):
        prepare(make(molecules, tmp_path, training=training | {"max_minutes": 1}))


def test_another_optimizer_gets_another_rate(molecules, tmp_path, clock):
    training = {"auto": True, "optimizer": "adam"}
    assert prepare(make(molecules, tmp_path, training=training)).config.training.learning_rate == 0.01


def test_more_time_means_larger_models(molecules, tmp_path, clock):
    sizes = []
    for minutes in (0.5, 5, 50, 5000):
        model = prepare(
            make(molecules, tmp_path, training={"auto": True, "max_minutes": minutes})
        ).config.model
        sizes.append((model.l_max, model.channels * model.layers))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2


def test_what_is_given_stays(molecules, tmp_path, clock):
    training = {"auto": True, "learning_rate": 0.003, "epochs": 7, "loss": {"energy": 5.0}}
    model = {"type": "nequip", "auto": True, "channels": 8, "cutoff": 4.0}
    prepared = prepare(make(molecules, tmp_path, model=model, training=training))
    config = prepared.config
    assert (config.training.learning_rate, config.training.epochs, config.training.loss.energy) == (
        0.003,
        7,
        5,
    )
    assert (config.model.channels, config.model.cutoff) == (8, 4.0)
    assert not any("channels" in line or "learning_rate" in line for line in prepared.choices)
    assert any("model.layers" in line for line in prepared.choices)


def test_one_section_may_be_auto(molecules, tmp_path, clock):
    model = {"type": "nequip", "l_max": 1, "channels": 4, "layers": 2}
    config = prepare(make(molecules, tmp_path, model=model)).config
    assert (config.model.l_max, config.model.channels, config.model.layers) == (1, 4, 2)
    assert config.training.batch_size != TrainingConfig().batch_size
    config = prepare(make(molecules, tmp_path, training={"epochs": 3})).config
    assert config.training.epochs == 3
    assert config.training.batch_size == TrainingConfig().batch_size
    assert config.training.max_minutes is None
    assert config.model.layers > 1


def test_allegro_has_sizes_too(molecules, tmp_path, clock):
    config = prepare(make(molecules, tmp_path, model={"type": "allegro", "auto": True})).config
    assert config.model.type == "allegro"
    assert not config.model.auto


def test_words_and_overrides(molecules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "auto.yaml"
    file.write_text(f"data: {{train: {molecules}}}\nmodel: auto\ntraining: auto\n")
    config = load_config(file, ["training.max_minutes=7", "model.type=allegro"])
    assert config.training.auto
    assert config.training.max_minutes == 7
    assert (config.model.type, config.model.auto) == ("allegro", True)
    with pytest.raises(ConfigError, match=r"model: expected .*found 'automatic'"):
        load_config(file, ["model=automatic"])


def test_time_is_measured_and_kept(molecules, tmp_path):
    """By the machine's clock: a training of four seconds; a loaded machine may cut it short."""
    model = {"type": "nequip", "auto": True, "l_max": 0, "channels": 2, "layers": 1}
    data = {"train": str(molecules), "train_frames": 10, "validation": 2, "checks": "off"}
    training = {"auto": True, "max_minutes": 4 / 60}
    result = train(make(molecules, tmp_path / "run", data=data, model=model, training=training))
    log = RunDirectory(result.directory).log.read_text()
    assert "Auto: training.epochs" in log
    written = load_config(RunDirectory(result.directory).config)
    assert not written.training.auto
    assert written.training.epochs >= 2
    assert result.stopped in ("finished", "max_minutes")


def test_a_training_goes_on_with_what_was_chosen(molecules, tmp_path, clock, monkeypatch):
    small = {"type": "nequip", "auto": True, "l_max": 0, "channels": 2}
    config = make(molecules, tmp_path / "run", model=small, training={"auto": True, "epochs": 2})
    train(config)
    before = load_config(RunDirectory(config.run.directory).config)
    monkeypatch.setattr(auto, "choose", lambda *_: pytest.fail("chosen again"))
    longer = make(molecules, tmp_path / "run", model=small, training={"auto": True, "epochs": 3})
    assert train(longer, resume=tmp_path / "run").stopped == "finished"
    after = load_config(RunDirectory(config.run.directory).config)
    assert after.training.epochs == 3
    assert after.model == before.model
    assert after.training.learning_rate == before.training.learning_rate
    for changes, message in (
        (
            {"model": {"type": "allegro", "auto": True}},
            r"chosen for .*run, see its config.yaml, does not go with",
        ),
        ({"training": {"auto": True, "epochs": 3, "swa": {"from_epoch": 7}}}, "only 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(make(molecules, tmp_path / "run", **changes), resume=tmp_path / "run")


def test_all_epochs_are_done_even_if_the_time_is_up_with_them(molecules, tmp_path):
    model = {"type": "nequip", "l_max": 0, "channels": 2, "layers": 1}
    training = {"epochs": 1, "max_minutes": 1e-6}
    data = {"train": str(molecules), "train_frames": 5, "validation": 2, "checks": "off"}
    training["batch_size"] = 5  # one step, after whose epoch the time is up
    result = train(make(molecules, tmp_path / "run", data=data, model=model, training=training))
    assert result.stopped == "finished"


def test_members_of_an_ensemble_differ_by_their_seeds_alone(molecules, tmp_path, monkeypatch):
    seconds = iter((1.0, 0.5))  # the machine is faster when it comes to the second
    monkeypatch.setattr(auto, "_epoch", lambda config, datasets, device: (25, next(seconds)))
    model = {"type": "nequip", "l_max": 0, "channels": 2, "layers": 1}
    config = make(molecules, tmp_path / "run", model=model, training={"auto": True, "max_minutes": 0.04})
    assert train_ensemble(config, 2) == "finished"
    first, second = (load_config(tmp_path / "run" / f"member_{index}" / "config.yaml") for index in (0, 1))
    assert first.training == second.training
    assert first.model == second.model


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"devices": 2, "device": "cpu"}}, "one device only"),
        ({"model": None, "fine_tune": {"model": "old.ckpt"}}, "random weights"),
        ({"model": {"type": "allegro", "auto": True, "layers": 1, "pair_cutoffs": {"C-C": 6.5}}}, "C-C"),
    ],
)
def test_refuses_what_it_cannot_choose(molecules, tmp_path, clock, sections, message):
    with pytest.raises(ConfigError, match=message):
        prepare(make(molecules, tmp_path, **sections))


def test_time_of_an_epoch_whose_frames_differ():
    """A set of 100 steps with 20,000 edges together, of which few small ones are timed."""
    edges = [10, 20, 10, 400, 30, 10]
    seconds = [0.05 + 0.001 * number for number in edges]
    assert auto._whole(edges, seconds, 100, 20_000) == pytest.approx(0.05 * 100 + 0.001 * 20_000)
    assert auto._whole([50] * 3, [0.1, 0.2, 0.3], 100, 5_000) == pytest.approx(0.2 * 100)
    assert auto._whole([0] * 2, [0.1, 0.1], 100, 0) == pytest.approx(0.1 * 100)  # isolated atoms


def test_refuses_too_little_time(molecules, tmp_path, clock):
    with pytest.raises(TrainingError, match=r"An epoch takes 1.9 s, .* training.max_minutes is 0.001"):
        prepare(make(molecules, tmp_path, training={"auto": True, "max_minutes": 0.001}))
