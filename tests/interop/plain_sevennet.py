"""SevenNet's model in e3nn's own modules, with the layout of its checkpoints: what imports are compared with.

Nothing of equipot is in it."""

import math

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import nn

BASE = {
    "version": "0.9.1",
    "chemical_species": ["C", "H", "O"],
    "_type_map": {6: 0, 1: 1, 8: 2},
    "irreps_manual": False,
    "channel": 4,
    "lmax": 2,
    "lmax_edge": -1,
    "lmax_node": -1,
    "is_parity": False,
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5},
    "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.0},
    "cutoff": 3.5,
    "weight_nn_hidden_neurons": [8, 6],
    "act_radial": "silu",
    "act_scalar": {"e": "silu", "o": "tanh"},
    "act_gate": {"e": "silu", "o": "tanh"},
    "self_connection_type": "linear",
    "readout_as_fcn": False,
    "use_bias_in_linear": False,
    "_normalize_sph": True,
}
OLD_NAMES = {
    "edge_embedding": "EdgeEmbedding",
    "reduce_input_to_hidden": "reducing nn input to hidden",
    "reduce_hidden_to_energy": "reducing nn hidden to energy",
}


class Part(nn.Module):
    """A module below the name that it has in checkpoints."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class PlainSevenNet(nn.Module):
    """Atomic energies of edges, in float64, with random weights."""

    def __init__(self, config: dict, layers: int, denominators: list[float]):
        super().__init__()
        self.config, self.layers = config, layers
        species, modals = len(config["_type_map"]), len(config.get("_modal_map", {}))
        biases = config["use_bias_in_linear"]
        parity = -1 if config["is_parity"] else 1
        edge = config["lmax_edge"] if config["lmax_edge"] > 0 else config["lmax"]
        self.irreps_sh = o3.Irreps.spherical_harmonics(edge, parity)
        count, cutoff = config["radial_basis"]["bessel_basis_num"], config["cutoff"]
        coeffs = math.pi / cutoff * torch.arange(1, count + 1) * (1 + 0.1 * torch.rand(count))
        self.edge_embedding = Part(basis_function=Part(coeffs=nn.Parameter(coeffs)))

        def linear(irreps_in, irreps_out, key, **options):
            modal = f" + {modals}x0e" if modals and config.get(key) else ""
            return Part(linear=o3.Linear(f"{irreps_in}{modal}", irreps_out, **options))

        manual = config["irreps_manual"]
        irreps = o3.Irreps(manual[0] if manual else f"{config['channel']}x0e")
        self.onehot_to_feature_x = linear(f"{species}x0e", irreps, "use_modal_node_embedding", biases=biases)
        self.gates = nn.ModuleList()
        for t in range(layers):
            last = t + 1 == layers
            products = o3.FullTensorProduct(irreps, self.irreps_sh).irreps_out.simplify()
            if manual:
                out = o3.Irreps(manual[t + 1])
            else:
                degree = config["lmax_node"] if config["lmax_node"] > 0 else config["lmax"]
                degree = 0 if last else degree
                kept = [ir for _, ir in products if ir.l <= degree and not (last and ir.p < 0)]
                out = o3.Irreps([(config["channel"], ir) for ir in kept])
            mid = o3.Irreps([(m, ir) for m, ir in products if ir.l <= out.lmax and not (last and ir.p < 0)])
            gate = self.gate(out)
            self.gates.append(gate)
            if config["self_connection_type"] == "linear":
                connection = Part(linear=o3.Linear(irreps, gate.irreps_in))
            else:
                product = o3.FullyConnectedTensorProduct(irreps, f"{species}x0e", gate.irreps_in)
                connection = Part(fc_tensor_product=product)
            self.add_module(f"{t}_self_connection_intro", connection)
            first = linear(irreps, irreps, "use_modal_self_inter_intro", biases=biases)
            second = linear(mid, gate.irreps_in, "use_modal_self_inter_outro", biases=biases)
            self.add_module(f"{t}_self_interaction_1", first)
            self.add_module(f"{t}_convolution", self.convolution(irreps, mid, count, denominators[t]))
            self.add_module(f"{t}_self_interaction_2", second)
            irreps = out
        hidden = f"{irreps.dim // 2}x0e"
        if config["readout_as_fcn"]:
            sizes = [irreps.dim, *config["readout_fcn_hidden_neurons"], 1]
            self.readout_FCN = Part(fcn=FullyConnectedNet(sizes, nn.functional.silu))
        else:
            self.reduce_input_to_hidden = linear(irreps, hidden, "use_modal_output_block", biases=biases)
            self.reduce_hidden_to_energy = Part(linear=o3.Linear(hidden, "1x0e", biases=biases))
        shape = (modals, species) if modals else (species,)
        shift, scale = nn.Parameter(10 * torch.randn(shape)), nn.Parameter(0.5 + torch.rand(species))
        if config.get("use_modal_wise_scale"):
            scale = nn.Parameter(scale.detach() * torch.rand(modals, 1))
        self.rescale_atomic_energy = Part(shift=shift, scale=scale)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weight)

    @staticmethod
    def gate(irreps):
        scalars = o3.Irreps([(mul, ir) for mul, ir in irreps if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in irreps if ir.l > 0])
        silu, tanh = nn.functional.silu, torch.tanh
        of_scalars = [silu if ir.p > 0 else tanh for _, ir in scalars]
        gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
        return Gate(scalars, of_scalars, gates, [silu] * len(gates), gated)

    def convolution(self, irreps, allowed, basis, denominator):
        out, instructions = [], []
        for i, (mul, ir) in enumerate(irreps):
            for j, (_, ir_sh) in enumerate(self.irreps_sh):
                for ir_out in ir * ir_sh:
                    if ir_out in allowed:
                        instructions.append((i, j, len(out), "uvu", True))
                        out.append((mul, ir_out))
        out, place, _ = o3.Irreps(out).sort()
        instructions = [(i, j, place[k], mode, train) for i, j, k, mode, train in instructions]
        if not self.config["version"].startswith("0.9"):
            instructions.sort(key=lambda instruction: instruction[2])
        product = o3.TensorProduct(
            irreps, self.irreps_sh, out, instructions, shared_weights=False, internal_weights=False
        )
        hidden = self.config["weight_nn_hidden_neurons"]
        network = FullyConnectedNet([basis, *hidden, product.weight_numel], nn.functional.silu)
        return Part(
            convolution=product, weight_nn=network, denominator=nn.Parameter(torch.tensor([denominator]))
        )

    def forward(self, edge_vec, edge_index, types, modal=None):
        config, cutoff = self.config, self.config["cutoff"]
        r = edge_vec.norm(dim=1, keepdim=True)
        basis = 2 / cutoff * torch.sin(self.edge_embedding.basis_function.coeffs * r) / r
        envelope = config["cutoff_function"]
        if envelope["cutoff_function_name"] == "XPLOR":
            on = envelope["cutoff_on"]
            outer = (cutoff**2 - r**2) ** 2 * (cutoff**2 + 2 * r**2 - 3 * on**2) / (cutoff**2 - on**2) ** 3
            basis = basis * torch.where(r < on, torch.ones_like(r), outer)
        else:
            p, x = envelope["poly_cut_p_value"], r / cutoff
            polynomial = (
                -(p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
            )
            basis = basis * (1 + polynomial)
        sh = o3.spherical_harmonics(
            self.irreps_sh, edge_vec, normalize=config["_normalize_sph"], normalization="component"
        )
        one_hot = torch.eye(len(config["_type_map"]))[types]

        def apply(module, x):
            wanted = module.linear.irreps_in.dim - x.shape[1]
            return module.linear(
                torch.cat([x, torch.eye(wanted)[modal].expand(len(x), -1)], 1) if wanted else x
            )

        x = apply(self.onehot_to_feature_x, one_hot)
        for t, gate in enumerate(self.gates):
            part = {n: getattr(self, f"{t}_{n}") for n in ("self_connection_intro", "convolution")}
            connection, convolution = part["self_connection_intro"], part["convolution"]
            if config["self_connection_type"] == "linear":
                kept = connection.linear(x)
            else:
                kept = connection.fc_tensor_product(x, one_hot)
            sent = apply(getattr(self, f"{t}_self_interaction_1"), x)
            messages = convolution.convolution(sent[edge_index[1]], sh, convolution.weight_nn(basis))
            total = torch.zeros(len(types), messages.shape[1]).index_add(0, edge_index[0], messages)
            total = total / convolution.denominator
            x = gate(apply(getattr(self, f"{t}_self_interaction_2"), total) + kept)
        if config["readout_as_fcn"]:
            energy = self.readout_FCN.fcn(x)
        else:
            energy = self.reduce_hidden_to_energy.linear(apply(self.reduce_input_to_hidden, x))
        scale, shift = self.rescale_atomic_energy.scale, self.rescale_atomic_energy.shift
        scale, shift = (values if values.ndim == 1 else values[modal] for values in (scale, shift))
        return energy[:, 0] * scale[types] + shift[types]

    def checkpoint(self) -> dict:
        state = {
            name: w.detach().clone() for name, w in self.state_dict().items() if not name.startswith("gates.")
        }
        if self.config["version"] == "0.9.0":
            state = {self.old_name(name): weight for name, weight in state.items()}
        return {"config": self.config, "model_state_dict": state, "epoch": 1}

    @staticmethod
    def old_name(name):
        module, _, rest = name.partition(".")
        module = OLD_NAMES.get(module, module if "interaction_1" in module else module.replace("_", " "))
        module = module if module not in ("onehot to feature x",) else "onehot_to_feature_x"
        return f"{module}.{rest.replace('denominator', 'denumerator')}"


def make(layers=3, denominators=None, flipped=(), **changes) -> PlainSevenNet:
    """With the coupling coefficients of ``flipped`` degrees negated, as older versions of e3nn had them."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = PlainSevenNet({**BASE, **changes}, layers, denominators or [5.0] * layers)
    finally:
        torch.set_default_dtype(before)
    for name, buffer in model.named_buffers():
        if any(name.endswith(f"_w3j_{degrees}") for degrees in flipped):
            buffer.mul_(-1)
    return model


def evaluate(model: PlainSevenNet, edge_vec, edge_index, types, modal=None):
    """Atomic energies, and the gradient of their sum by the edges."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        edge_vec = edge_vec.clone().requires_grad_()
        energies = model(edge_vec, edge_index, types, modal)
        return energies.detach(), torch.autograd.grad(energies.sum(), edge_vec)[0]
    finally:
        torch.set_default_dtype(before)
