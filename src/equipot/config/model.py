"""Section ``model``: the architecture, chosen by ``type``."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from equipot.config.outputs import OutputConfig, OutputName, check_references
from equipot.config.section import PositiveInts, Section, check_symbol
from equipot.errors import ConfigError
from equipot.units import compound_unit, size_in


class CommonModelConfig(Section):
    """What every model has."""

    type: str = Field(description="The architecture.")
    auto: bool = Field(
        False,
        description="Choose what is not given here from the data and the time for training, and say why; "
        "`model: auto` is short for `{type: nequip, auto: true}`. See [auto](auto.md).",
    )
    cutoff: float = Field(5.0, gt=0, description="Atoms closer than this are neighbors, in Å.")
    l_max: int = Field(2, ge=0, le=4, description="Highest degree l of the equivariant features.")
    parity: bool = Field(
        True,
        description="Keep features that are even and features that are odd under inversion for each l; "
        "false: only those that transform like the spherical harmonics, (−1)^l, which costs less.",
    )
    num_bessel: int = Field(8, ge=1, description="Number of Bessel functions that describe a distance.")
    polynomial_cutoff: int = Field(
        6,
        ge=2,
        description="Exponent p of the polynomial envelope that brings messages to zero at the cutoff.",
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Precision of the network. Geometry and sums over atoms are always float64."
    )
    scale: Literal["force_rms"] | Annotated[float, Field(gt=0)] = Field(
        "force_rms",
        description="Energy that one unit of network output stands for, in eV: a number, or the root mean "
        "square of the training forces times 1 Å.",
    )
    trainable_scale_shift: bool = Field(
        False, description="Train the scale and the shift (the atomic energy) of each element."
    )
    zbl: bool | Literal["cutoff"] = Field(
        False,
        description="Add the Ziegler–Biersack–Littmark screened repulsion of nuclei at short distance: up to "
        "the sum of the covalent radii, or up to the `cutoff`.",
    )
    energy: bool = Field(
        True,
        description="Predict energies, and forces and stress with them; false: `outputs` alone, without the "
        "reverse pass that forces take.",
    )
    outputs: dict[OutputName, OutputConfig] = Field(
        {},
        description="What else the model predicts, by its name, as in `{dipole: {per: structure, tensor: "
        "vector}}`; see [outputs](outputs.md).",
        json_schema_extra={"words": "mapping from a name to a section"},
    )
    field: bool = Field(
        False,
        description="The energy depends on a uniform electric field F, too: E − P·F − ½ F·α·F, where P is "
        "the output `polarization` (or `dipole`) and α the output `polarizability`, if there is one; see "
        "[response](response.md).",
    )
    pair_cutoffs: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Shorter cutoffs for pairs of elements, such as `{H-H: 3.0, H-O: 4.0}` in Å. `O-H`, "
        "where the center is O, is as `H-O` if it is not given. Radial functions are those of the distance "
        "times `cutoff` / cutoff of the pair.",
    )

    def _leaves_open(self, *keys: str) -> bool:
        """Whether one of ``keys`` is still to be chosen."""
        return self.auto and not self.model_fields_set.issuperset(keys)

    @model_validator(mode="after")
    def _predicts_something(self):
        if self.energy:
            return self
        if not self.outputs:
            raise ValueError("`energy` is false and there are no `outputs`: the model would predict nothing.")
        for key in ("zbl", "trainable_scale_shift", "field"):
            if getattr(self, key):
                raise ValueError(f"`{key}` is about energies, but `energy` is false: leave it out.")
        return self

    @field_validator("outputs")
    @classmethod
    def _outputs_fit_together(cls, outputs: dict[str, OutputConfig]) -> dict[str, OutputConfig]:
        check_references(outputs)
        return outputs

    @field_validator("pair_cutoffs")
    @classmethod
    def _pairs_of_elements(
        cls, pairs: dict[str, float] | None, info: ValidationInfo
    ) -> dict[str, float] | None:
        for pair, cutoff in (pairs or {}).items():
            symbols = pair.split("-")
            if len(symbols) != 2:
                raise ValueError(f"expected two chemical symbols, such as H-O, found '{pair}'.")
            for symbol in symbols:
                check_symbol(symbol)
            if cutoff > info.data.get("cutoff", cutoff):
                raise ValueError(f"{pair}: {cutoff:g} Å is more than the cutoff, {info.data['cutoff']:g} Å.")
        return pairs

    @model_validator(mode="after")
    def _derivatives_are_of_vectors(self):
        for name, output in self.outputs.items():
            if output.derivative_of is None:
                continue
            self._factor_of_derivative(name)
            if not self.energy:
                raise ValueError(
                    f"outputs.{name}: `derivative_of` takes the reverse pass of a model with energies, but "
                    "`energy` is false. Leave out one of the two."
                )
        terms = self.field_terms if self.field else {}
        for name in {one.derivative_of for one in self.outputs.values()} | terms.keys():
            if name is not None and self.outputs[name].charges is not None:
                raise ValueError(
                    f"outputs.{name}: its `charges` would be in no derivative (`field`, `derivative_of`), "
                    "since they are added for whole structures. Leave one of the two out."
                )
        return self

    def _factor_of_derivative(self, name: str) -> float:
        """Of the unit per Å of what it is the derivative of, in its own."""
        output = self.outputs[name]
        source = self.outputs.get(output.derivative_of)
        if source is None or source.derivative_of is not None or not source.is_structure_vector:
            found = "there is none" if source is None else "it is none"
            raise ValueError(
                f"outputs.{name}: `derivative_of: {output.derivative_of}` must name an output with `per: "
                f"structure`, `tensor: vector` and a sum; {found}."
            )
        size, powers = compound_unit(f"{source.unit or 1}/Ang" if source.unit or output.unit else "")
        own, wanted = compound_unit(output.unit)
        if powers != wanted:
            raise ValueError(
                f"outputs.{name}: the derivative of {output.derivative_of}, which is in "
                f"{source.unit or 'no unit'}, by positions cannot be in {output.unit or 'no unit'}."
            )
        return size / own

    @property
    def field_terms(self) -> dict[str, float]:
        """Outputs of which the energy in a field is made, P and α, and their units in e Å and e²Å²/eV."""
        vectors = [name for name in ("polarization", "dipole") if name in self.outputs]
        if len(vectors) != 1 or not self.outputs[vectors[0]].is_structure_vector:
            raise ValueError(
                "`field: true` needs one output `polarization` or `dipole`, the energy's derivative by the "
                "field, such as outputs: {polarization: {per: structure, tensor: vector, unit: e*Ang, "
                f"modulo: cell}}}}; found {', '.join(vectors) or 'none'}"
                + (", which must be a structure's vector and a sum." if len(vectors) == 1 else ".")
            )
        terms = {vectors[0]: "e*Ang"}
        if "polarizability" in self.outputs:
            tensor = self.outputs["polarizability"]
            if (tensor.per, tensor.tensor, tensor.size, tensor.reduce) != (
                "structure",
                "symmetric",
                None,
                "sum",
            ):
                raise ValueError(
                    "`field: true` needs outputs.polarizability with `per: structure`, `tensor: symmetric` "
                    "and a sum."
                )
            terms["polarizability"] = "e^2*Ang^2/eV"
        return {name: self._in_unit(name, unit) for name, unit in terms.items()}

    def _in_unit(self, name: str, unit: str) -> float:
        try:
            return size_in(self.outputs[name].unit, unit)
        except ConfigError as error:
            raise ValueError(f"`field: true`, outputs.{name}: {error}") from None

    def output_specs(self) -> list[dict[str, Any]]:
        """What `equipot.models.outputs.OutputSpec` has, of each output."""
        return [
            output.spec(name)
            | ({} if output.derivative_of is None else {"factor": self._factor_of_derivative(name)})
            for name, output in self.outputs.items()
        ]

    def cutoffs_of_pairs(self, species: Sequence[str]) -> list[list[float]] | None:
        """Å, for each center and neighbor; None: `cutoff` for all."""
        if self.pair_cutoffs is None:
            return None
        known = self.pair_cutoffs
        return [
            [known.get(f"{one}-{other}", known.get(f"{other}-{one}", self.cutoff)) for other in species]
            for one in species
        ]


class NequIPConfig(CommonModelConfig):
    """NequIP: equivariant message passing."""

    type: Literal["nequip"] = Field(description="The architecture.")
    parity: bool | Literal["ignored"] = Field(
        True,
        description="Keep features that are even and features that are odd under inversion for each l; "
        "false: only those that transform like the spherical harmonics, (−1)^l, which costs less; `ignored`: "
        "one for each l that knows rotations alone, of products of all kinds. Energies of mirror images may "
        "then differ.",
    )
    layers: int = Field(4, ge=1, description="Number of message-passing layers.")
    channels: Annotated[int, Field(ge=1)] | PositiveInts = Field(
        32,
        description="Channels of the features: one number for all l, or a list of l_max + 1 numbers, one for "
        "each l from 0.",
    )
    layer_channels: Annotated[tuple[PositiveInts, ...], Strict(False), Field(min_length=1)] | None = Field(
        None,
        description="In place of `channels`, a list for each layer, in which the last l may be missing. Of "
        "the last layer only l = 0 counts.",
    )
    embedding_channels: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Numbers that describe an element; null: as many as channels of l = 0."
    )
    trainable_bessel: bool = Field(
        False, description="Train the frequencies of the Bessel functions, of each layer its own."
    )
    xplor_start: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Distance in Å from which on X-PLOR's envelope brings messages to zero at the cutoff, in "
        "place of the polynomial one: messages are untouched below, and forces have a kink at the cutoff.",
    )
    normalize_harmonics: bool = Field(
        True, description="Spherical harmonics of directions; false: solid ones, r^l times as large (r in Å)."
    )
    self_connection: Literal["by_element", "shared"] = Field(
        "by_element",
        description="The linear map of an atom's own features that is added to its messages: one for each "
        "element, or `shared` by all, which suits models of many elements.",
    )
    first_self_connection: bool = Field(
        True,
        description="The first layer has one, too; false: it has messages only, and an isolated atom has "
        "exactly its reference energy if there are no `biases`.",
    )
    element_factors: bool = Field(
        False,
        description="Train a factor for each element, of each layer its own, by which what its atoms send is "
        "multiplied.",
    )
    biases: bool = Field(
        False,
        description="Train constants that are added to scalars before the convolution and before the gate, "
        "for each level of theory its own: levels then differ in more than their readout.",
    )
    radial_hidden: PositiveInts = Field(
        (64, 64), description="Hidden-layer widths of the networks that weigh messages by distance."
    )
    radial_intervals: Annotated[int, Field(ge=8)] | None = Field(
        128,
        description="These networks are functions of one number: they are evaluated at a few distances in "
        "each of so many equal intervals, and splines are drawn through, instead of at every edge. null: at "
        "every edge, which is slower for more than a few hundred edges.",
    )
    readout_hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)] = Field(
        (),
        description="Hidden-layer widths of a network from the last features to the energy of an atom; none: "
        "a linear map.",
    )

    @property
    def channels_per_l(self) -> tuple[int, ...]:
        """Channels for each l = 0 ... l_max."""
        if isinstance(self.channels, int):
            return (self.channels,) * (self.l_max + 1)
        return self.channels

    @model_validator(mode="after")
    def _one_channel_number_per_l(self):
        given, needed = len(self.channels_per_l), self.l_max + 1
        if given != needed and not self._leaves_open("l_max"):
            raise ValueError(
                f"`channels` lists {given} number{'s' * (given > 1)}, but l_max = {self.l_max} needs "
                f"{needed}: one for each l from 0 to {self.l_max}."
            )
        return self

    @model_validator(mode="after")
    def _one_list_per_layer(self):
        lists = self.layer_channels
        if self._leaves_open("layers", "l_max"):
            return self
        if lists is not None and (len(lists) != self.layers or max(map(len, lists)) > self.l_max + 1):
            raise ValueError(
                f"`layer_channels` has {len(lists)} lists of up to {max(map(len, lists))} numbers; expected "
                f"one list for each of the {self.layers} layers, of at most l_max + 1 = {self.l_max + 1}."
            )
        return self

    @model_validator(mode="after")
    def _envelope_starts_within_the_cutoff(self):
        if self.xplor_start is not None and self.xplor_start >= self.cutoff:
            raise ValueError(
                f"`xplor_start` is {self.xplor_start:g} Å: it must be below the cutoff, {self.cutoff:g} Å."
            )
        return self


class AllegroConfig(CommonModelConfig):
    """Allegro: equivariant features of pairs of atoms, strictly local."""

    type: Literal["allegro"] = Field(description="The architecture.")
    layers: int = Field(2, ge=1, description="Number of tensor-product layers.")
    scalar_channels: int = Field(64, ge=1, description="Width of the scalar (latent) features of a pair.")
    channels: int = Field(32, ge=1, description="Channels of the equivariant features of a pair.")
    two_body_hidden: PositiveInts = Field(
        (64, 64), description="Hidden-layer widths of the network that embeds a distance and two elements."
    )
    latent_hidden: PositiveInts = Field(
        (64, 64),
        description="Hidden-layer widths of the network that updates the scalar features in a layer.",
    )
    readout_hidden: PositiveInts = Field(
        (32,), description="Hidden-layer widths of the network from scalar features to the energy of a pair."
    )


class AllegroDenseConfig(CommonModelConfig):
    """Allegro as nequip-allegro 0.8 has it: elements multiply radial functions, all layers' scalars stay."""

    type: Literal["allegro_dense"] = Field(description="The architecture.")
    layers: int = Field(2, ge=1, description="Number of tensor-product layers.")
    scalar_channels: int = Field(64, ge=1, description="Scalar features of a pair that each layer adds.")
    channels: int = Field(16, ge=1, description="Channels of the equivariant features of a pair.")
    pair_channels: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Radial functions that elements multiply; null: as many as `scalar_channels`."
    )
    two_body_hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)] = Field(
        (64,), description="Hidden-layer widths of the network behind these products."
    )
    latent_hidden: PositiveInts = Field(
        (64,), description="Hidden-layer widths of the network that makes the scalar features of a layer."
    )
    readout_hidden: PositiveInts = Field(
        (32,), description="Hidden-layer widths of the network from scalar features to the energy of a pair."
    )


ModelConfig = Annotated[NequIPConfig | AllegroConfig | AllegroDenseConfig, Field(discriminator="type")]
