/* equipot's engine: energies, forces and virials of a deployed model, without torch and without Python.
 *
 * Units: eV, Å. Arrays are row-major and belong to the caller. No function throws; each says by its status whether
 * it worked, and equipot_message() what went wrong. Threads may share a model: an evaluation that begins while
 * another one runs does all of its work in its own thread.
 */
#ifndef EQUIPOT_H
#define EQUIPOT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EQUIPOT_ABI 6 /* grows when a struct or a function changes */

typedef enum {
  EQUIPOT_OK = 0,
  EQUIPOT_BAD_ARGUMENT = 1,  /* a null pointer, a number out of range, an atom or element that is not there */
  EQUIPOT_BAD_FILE = 2,      /* missing, damaged, no deployed model, or without a program for this engine */
  EQUIPOT_BAD_STRUCTURE = 3, /* atoms that coincide, numbers that are not finite, a cell without volume */
  EQUIPOT_WRONG_RESULT = 4,  /* the model does not reproduce its reference structures, or gives no finite numbers */
  EQUIPOT_FAILED = 5         /* anything else, such as too little memory */
} equipot_status;

typedef struct equipot_model equipot_model;

/* The EQUIPOT_ABI that the library was built with. Programs built with another one must not use it. */
int equipot_abi(void);

/* What the last call of this thread that did not return EQUIPOT_OK found wrong; valid until the next call. */
const char* equipot_message(void);

/* Reads a file written by `equipot deploy`. On success *model must be given to equipot_close. */
equipot_status equipot_open(const char* path, equipot_model** model);
void equipot_close(equipot_model* model); /* null is allowed */

/* The same from the bytes of a file, which are not needed afterwards; `name` stands in messages. */
equipot_status equipot_open_memory(const char* name, const void* bytes, size_t size, equipot_model** model);

/* The same on a device: "cpu", or a GPU of NVIDIA, "cuda" or "cuda:0", "cuda:1", ... as its driver counts. There the results
 * are those that a CPU gives, but for rounding; features, outputs, fields, and heat virials of models that pass messages are
 * not computed, and asking for them is an error, as is opening a model with outputs. Nothing of CUDA is needed when a
 * program is compiled or linked: the driver (libcuda.so.1) and NVRTC (libnvrtc.so) are found when the first model is opened,
 * or a message says what is missing. Evaluations of a model on a GPU wait for each other. */
equipot_status equipot_open_on(const char* path, const char* device, equipot_model** model);
equipot_status equipot_open_memory_on(const char* name, const void* bytes, size_t size, const char* device,
                                      equipot_model** model);

/* The GPUs that there are for equipot_open_on; if there is none, 0, and equipot_message() says what is missing. */
int equipot_num_gpus(void);

/* What a model predicts beside the energy (model.outputs). */
typedef struct {
  const char* name;
  const char* unit;        /* as in "e*Ang"; empty: a number without one */
  const int64_t* shape;    /* (num_axes) of one value; a tensor's axes are the last */
  int32_t num_axes;
  int32_t per_atom;        /* nonzero: a value for each atom; otherwise one for the structure: of its atoms' rows */
  int32_t mean;            /* the mean, where nonzero, or the sum */
  int32_t is_derivative;   /* nonzero: by positions, as Born charges; its numbers are in `derivatives` in place of `outputs` */
  int64_t first, width;    /* of its numbers in an atom's row of these */
  const char* total;       /* not empty: to each of the N atoms of a structure (Q - sum) / N is still to be added, Q being a number
                              of this name, such as its charge, or 0 */
  const char* charges;     /* not empty: sum q_i r_i is still to be added, q being the output of this name, with its shares */
} equipot_output;

typedef struct {
  int32_t num_species;
  const char* const* species;       /* chemical symbols; the position is the type of an atom */
  const double* reference_energies; /* eV, of an isolated atom of each species */
  const double* masses;             /* u, the standard ones */
  double cutoff;                    /* Å; the longest edge */
  int32_t num_exchanges;            /* of features with other domains in one evaluation; 0: strictly local */
  int64_t widest_exchange;          /* numbers per atom in the widest of them */
  int32_t bytes_per_number;         /* of a feature: 4 or 8 */
  const char* model_type;           /* "nequip", "allegro", ... */
  const char* equipot_version;      /* that wrote the file */
  uint64_t checksum;                /* of the file: to see whether two processes have read the same one */
  int64_t feature_width;            /* of the last layer; 0: the file does not say how uncertain its energies are */
  const double* shortest_distances; /* (num_species, num_species) Å, the closest that atoms of two species come in
                                       the training set, infinite for a pair it does not have; null: not known */
  int32_t num_outputs;
  const equipot_output* outputs;    /* (num_outputs) */
  int64_t output_width;             /* numbers of all of them in `outputs`, of an atom */
  int64_t derivative_width;         /* and in `derivatives` */
  int32_t has_energy;               /* 0: it predicts outputs alone; energies, forces and virials are zero */
  int32_t feels_field;              /* nonzero: energy and forces may be asked for in an electric field */
} equipot_description;

/* Pointers in *description are valid as long as the model. */
equipot_status equipot_describe(const equipot_model* model, equipot_description* description);

/* For codes that cut space into domains: owned atoms come first, ghosts follow. Both functions move rows of `row_bytes` bytes,
 * one behind the other, between domains, which call them together, from the thread that evaluates; what the bytes mean is the
 * engine's affair. `rows` (num_sent) are those of `sent`, `ghosts` (num_atoms - num_owned) those of the ghosts. Where both are
 * in the order of domains, that is one message to each neighbor, of bytes as they lie. */
typedef struct {
  void* context;
  int64_t num_owned;
  int64_t num_sent;
  const int64_t* sent; /* (num_sent) the owned atoms that are ghosts elsewhere, once for each of these ghosts */
  int32_t gpu_aware;   /* nonzero: a model on a GPU passes addresses of its memory; otherwise all are the host's */
  void (*to_ghosts)(void* context, const void* rows, void* ghosts, int64_t row_bytes); /* each row to its ghosts */
  void (*to_owners)(void* context, const void* ghosts, void* rows, int64_t row_bytes); /* what ghosts have comes back */
} equipot_exchange;

typedef struct {
  int64_t num_atoms, num_edges;
  const int64_t* types;             /* (num_atoms) index into the species */
  const uint8_t* owned;             /* (num_atoms) nonzero: its energy counts; null: all, with an exchange its first num_owned */
  const int64_t* center;            /* (num_edges) */
  const int64_t* neighbor;          /* (num_edges) */
  const double* edge_vec;           /* (num_edges, 3) Å, from the center to the neighbor */
  const equipot_exchange* exchange; /* null: none */
  const int64_t* ids;               /* (num_atoms) what messages call the atoms; null: their index */
  const double* field;              /* (3) V/Å, uniform; null: none */
} equipot_edges;

/* Null: not wanted. */
typedef struct {
  double* energy;        /* (1) eV */
  double* atom_energies; /* (num_atoms) eV, zero where not owned */
  double* forces;        /* (num_atoms, 3) eV/Å */
  double* virial;        /* (3, 3) eV; the stress is -virial / volume */
  double* atom_virials;  /* (num_atoms, 3, 3) eV, counted at the neighbor */
  double* atom_heat_virials; /* (num_atoms, 3, 3) eV: V_i of the heat flux, sum_i V_i v_i, of which the last index is the
                              * velocity's; their sum is the virial. Langer et al., Phys. Rev. B 108, L100302 (2023).
                              * Those of atoms that are not owned belong to their owners. The same as atom_virials for
                              * strictly local models; else an evaluation takes several times as long, and exchanges
                              * more: all domains must want them, those without atoms by any address. */
  double* features;      /* (num_atoms, feature_width) eV, of the last layer, zero where not owned */
  double* outputs;       /* (num_atoms, output_width) in the outputs' units, zero where not owned; in the field, if there is one */
  double* derivatives;   /* (num_atoms, derivative_width) the same of outputs that are derivatives: those of atoms that are not
                          * owned belong to their owners; each takes three reverse passes, and exchanges, so all domains must want
                          * them, those without atoms by any address */
  int32_t* closer;       /* (1) nonzero: an edge is shorter than the watched distance of its species; not of evaluations from edges */
} equipot_results;

/* From edges that are known. */
equipot_status equipot_evaluate_edges(equipot_model* model, const equipot_edges* edges, const equipot_results* results);

typedef struct {
  int64_t num_atoms;
  const int64_t* types;     /* (num_atoms) index into the species */
  const double* positions;  /* (num_atoms, 3) Å */
  const double* cell;       /* (3, 3) Å, rows are lattice vectors; null where nothing is periodic */
  int32_t periodic[3];      /* nonzero: periodic along this lattice vector */
  const double* field;      /* (3) V/Å, uniform; null: none */
  const double* watched;    /* (num_species, num_species) Å, symmetric; null: none */
  int32_t anew;             /* nonzero: a GPU makes its neighbor list anew, whether or not it is complete */
} equipot_structure;

/* From positions: neighbors are searched anew at every call, on a GPU when atoms have moved so far that they may be others. */
equipot_status equipot_evaluate(equipot_model* model, const equipot_structure* structure,
                                const equipot_results* results);

/* A domain, with the places in space that its edges are between: those of owned atoms, of atoms that other domains own, and of
 * images of either. */
typedef struct {
  int64_t num_atoms, num_owned;     /* owned atoms come first */
  const int64_t* types;             /* (num_atoms) index into the species */
  int64_t num_places, num_local;    /* each owned atom is at one of the first num_local places, and nothing else is there */
  const double* positions;          /* (num_places, 3) Å */
  const int64_t* atoms;             /* (num_places) the atom at each place; -1: one that the model does not see */
  int32_t moved;                    /* nonzero: since the model's last evaluation, which did not fail, only positions have changed. Then a
                                     * neighbor list is kept as long as it is complete */
  const equipot_exchange* exchange; /* null: none, where nothing is exchanged or all atoms are owned */
  const int64_t* ids;               /* (num_atoms) what messages call the atoms; null: their index */
  const double* watched;            /* (num_species, num_species) Å, symmetric; null: none */
} equipot_domain;

/* From places: on a GPU that is where the edges are found. */
equipot_status equipot_evaluate_domain(equipot_model* model, const equipot_domain* domain, const equipot_results* results);

/* Standard deviations sigma (num_rows) eV of energies, by last-layer prediction rigidity, from rows of `features`
 * (num_rows, feature_width) eV: that of an atom's energy from its features, that of a structure's from the sum over all
 * of its atoms, those of other domains included. EQUIPOT_BAD_ARGUMENT if the file has no uncertainty. */
equipot_status equipot_energy_uncertainty(const equipot_model* model, int64_t num_rows, const double* features,
                                          double* sigma);

/* Evaluates the reference structures in the file. `summary` receives at most `size` bytes; null: not wanted. */
equipot_status equipot_check(equipot_model* model, char* summary, size_t size);

/* Threads that evaluations use; 0: as the environment variable OMP_NUM_THREADS says, or as many as there
 * are cores. */
void equipot_set_threads(int num_threads);
int equipot_threads(void);

/* The set of instructions that evaluations use, "baseline", "avx2" or "avx512": the best that the library was compiled
 * for and the processor has, or the one that the environment variable EQUIPOT_INSTRUCTIONS names; null if that is not
 * there. */
const char* equipot_instructions(void);

/* SHA-256 of the sources that the library was built from. */
const char* equipot_sources(void);

#ifdef __cplusplus
}
#endif

#endif
