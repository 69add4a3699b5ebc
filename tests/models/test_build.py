"""From the section ``model`` to a potential."""

from equipot.config import NequIPConfig
from equipot.models import build
from equipot.models.potential import Potential


class WithCharges(Potential):
    def __init__(self, *arguments, charges: bool = False):
        super().__init__(*arguments)
        self.charges = charges


class WithChargesConfig(NequIPConfig):
    charges: bool


def test_a_key_that_asks_for_an_output_reaches_the_potential(monkeypatch):
    """What step 3 of a new output in CONTRIBUTING.md says: no line in models/build.py."""
    monkeypatch.setattr(build, "Potential", WithCharges)
    config = WithChargesConfig(type="nequip", layers=1, channels=2, l_max=0, scale=1.0, charges=True)
    potential = build.build_potential(config, ["H"], 4.0, [0.0], None)
    assert potential.charges and not hasattr(potential.network, "charges")
