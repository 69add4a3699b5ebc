"""Run by an interpreter that has nequip: models of random weights, what they give, and a checkpoint.

    python make_nequip.py PATH_OF_nequip_dump.py STRUCTURES.npz FOLDER

Writes for each kind KIND.npz, the dump, and KIND_reference.npz; and train.ckpt.
"""

import importlib.util
import sys
from pathlib import Path

import lightning
import numpy as np
import torch

del sys.path[0]

from allegro.model import AllegroModel  # noqa: E402
from nequip.model import NequIPGNNModel  # noqa: E402
from nequip.model.nequip_models import FullNequIPGNNModel, PresetNequIPGNNModel  # noqa: E402
from nequip.train import NequIPLightningModule  # noqa: E402
from nequip.utils import get_current_code_versions  # noqa: E402
from nequip.utils.global_state import set_global_state  # noqa: E402

COMMON = {
    "seed": 3, "model_dtype": "float32", "type_names": ["O", "H", "C"], "r_max": 4.5,
    "avg_num_neighbors": 11.3,
    "per_type_energy_scales": 1.3, "per_type_energy_shifts": {"H": -13.0, "C": -1000.0, "O": -2000.0},
}  # fmt: skip
ZBL = {
    "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": COMMON["type_names"],
}  # fmt: skip
FULL = {
    "radial_mlp_depth": [1, 1], "radial_mlp_width": [16, 16],
    "feature_irreps_hidden": ["8x0e+4x1o+3x2e", "7x0e"], "irreps_edge_sh": "1x0e+1x1o+1x2e",
    "type_embed_num_features": 5, "learnable_shift": True, "readout_mlp_nonlinearity": None,
    "readout_mlp_hidden_layers_depth": 1, "readout_mlp_hidden_layers_width": 4,
}  # fmt: skip
ALLEGRO = {
    "l_max": 2, "num_scalar_features": 16, "num_tensor_features": 6,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"},
}  # fmt: skip
KINDS = {
    "default": (NequIPGNNModel, {}),
    "parity": (
        NequIPGNNModel,
        {"l_max": 2, "num_features": [12, 8, 5], "num_layers": 3, "model_dtype": "float64"},
    ),
    "norm_readout_bessel": (
        NequIPGNNModel,
        {
            "l_max": 2, "parity": False, "num_features": 8, "bessel_trainable": True,
            "avg_num_neighbors": {"H": 5.0, "C": 8.5, "O": 12.0}, "readout_mlp_hidden_layers_depth": 2,
            "readout_mlp_hidden_layers_width": 9, "radial_mlp_depth": 2, "radial_mlp_width": 16,
            "per_type_energy_scales": {"H": 1.0, "C": 2.0, "O": 0.5},
        },
    ),
    "pairs_zbl": (
        NequIPGNNModel,
        {
            "num_features": 8, "per_edge_type_cutoff": {"H": 3.0, "C": {"H": 3.3, "O": 4.0}},
            "pair_potential": ZBL,
        },
    ),
    "full": (FullNequIPGNNModel, FULL),
    "allegro": (AllegroModel, ALLEGRO),
    "allegro_three": (
        AllegroModel,
        ALLEGRO | {
            "num_layers": 3, "parity": False, "tp_path_channel_coupling": False, "l_max": 3,
            "radial_chemical_embed_dim": 10, "scalar_embed_mlp_hidden_layers_depth": 0,
            "allegro_mlp_hidden_layers_depth": 2,
        },
    ),
    "allegro_pairs_zbl": (
        AllegroModel,
        ALLEGRO | {
            "num_layers": 1, "per_edge_type_cutoff": {"H": 3.0, "C": {"H": 3.3, "O": 4.0}},
            "pair_potential": ZBL,
        },
    ),
    "preset_S": (PresetNequIPGNNModel, {"preset": "S"}),
    "preset_M": (PresetNequIPGNNModel, {"preset": "M"}),
    "preset_L": (PresetNequIPGNNModel, {"preset": "L"}),
}  # fmt: skip


def checkpoint(path):
    """As nequip-train writes it after two steps."""
    settings = COMMON | {"num_layers": 2, "num_features": 4, "radial_mlp_width": 8, "pair_potential": ZBL}
    training = {
        "_target_": "nequip.train.NequIPLightningModule",
        "model": {"_target_": "nequip.model.NequIPGNNModel", **settings},
    }
    module = NequIPLightningModule(
        model=training["model"],
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
        info_dict={"versions": get_current_code_versions(verbose=False), "training_module": training},
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(2):
        sum(weight.square().sum() for weight in module.parameters()).backward()
        optimizer.step()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)


def main(script, structures, folder):
    spec = importlib.util.spec_from_file_location("nequip_dump", script)
    nequip_dump = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nequip_dump)
    set_global_state()
    folder = Path(folder)
    for kind, (build, changes) in KINDS.items():
        model = build(**COMMON | changes).eval()
        for name, weight in model.named_parameters():
            if name.endswith("bessel_weights"):
                weight.data *= 1 + 0.1 * torch.rand_like(weight)
        np.savez(folder / f"{kind}.npz", **nequip_dump.dump(model, {"nequip": "0.19"}))
        found = nequip_dump.evaluate(model, np.load(structures))
        np.savez(folder / f"{kind}_reference.npz", **found)
    checkpoint(folder / "train.ckpt")


if __name__ == "__main__":
    main(*sys.argv[1:])
