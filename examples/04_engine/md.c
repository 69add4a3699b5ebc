/* Molecular dynamics of silicon at constant energy, by equipot's C interface: ./md MODEL [STEPS]
 * Units: eV, Å, fs and u, so a force divided by a mass is multiplied by ACCELERATION. */
#include <equipot.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS = 3, ATOMS = 8 * CELLS * CELLS * CELLS };
static const double LATTICE = 5.46, MASS = 28.085, TEMPERATURE = 600.0, TIMESTEP = 1.0;
static const double BOLTZMANN = 8.617333e-5;    /* eV/K */
static const double ACCELERATION = 9.648533e-3; /* Å/fs² of 1 eV/Å and 1 u */

static double positions[ATOMS][3], velocities[ATOMS][3], forces[ATOMS][3];
static int64_t types[ATOMS];

static void require(equipot_status status) {
  if (status == EQUIPOT_OK) return;
  fprintf(stderr, "%s\n", equipot_message());
  exit(1);
}

static double normal(void) { /* Box and Muller */
  const double u = (rand() + 1.0) / (RAND_MAX + 2.0), v = (rand() + 1.0) / (RAND_MAX + 2.0);
  return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

static void set_up(void) {
  static const double basis[8][3] = {{0, 0, 0},          {0, .5, .5},        {.5, 0, .5},        {.5, .5, 0},
                                     {.25, .25, .25}, {.25, .75, .75}, {.75, .25, .75}, {.75, .75, .25}};
  const double width = sqrt(BOLTZMANN * TEMPERATURE * ACCELERATION / MASS);
  double mean[3] = {0, 0, 0};
  for (int i = 0; i < ATOMS; ++i) {
    const int cell[3] = {i / 8 % CELLS, i / 8 / CELLS % CELLS, i / 8 / CELLS / CELLS};
    for (int a = 0; a < 3; ++a) {
      positions[i][a] = LATTICE * (cell[a] + basis[i % 8][a]);
      velocities[i][a] = width * normal();
      mean[a] += velocities[i][a] / ATOMS;
    }
  }
  for (int i = 0; i < ATOMS; ++i)
    for (int a = 0; a < 3; ++a) velocities[i][a] -= mean[a];
}

static void accelerate(double time) {
  for (int i = 0; i < ATOMS; ++i)
    for (int a = 0; a < 3; ++a) velocities[i][a] += time * ACCELERATION / MASS * forces[i][a];
}

int main(int count, char** arguments) {
  if (count < 2) return fprintf(stderr, "usage: %s MODEL [STEPS]\n", arguments[0]), 2;
  const int steps = count > 2 ? atoi(arguments[2]) : 1000;
  equipot_model* model;
  require(equipot_open(arguments[1], &model));
  char summary[200];
  require(equipot_check(model, summary, sizeof summary));
  printf("checked: %s\n", summary);

  equipot_description about;
  require(equipot_describe(model, &about));
  int type = 0;
  while (type < about.num_species && strcmp(about.species[type], "Si") != 0) ++type;
  if (type == about.num_species) return fprintf(stderr, "the model does not know silicon\n"), 1;
  for (int i = 0; i < ATOMS; ++i) types[i] = type;

  const double box = CELLS * LATTICE, cell[9] = {box, 0, 0, 0, box, 0, 0, 0, box};
  const equipot_structure structure = {ATOMS, types, &positions[0][0], cell, {1, 1, 1}};
  double potential;
  const equipot_results results = {.energy = &potential, .forces = &forces[0][0]};
  set_up();
  require(equipot_evaluate(model, &structure, &results));
  double first = 0;
  for (int step = 0; step <= steps; ++step) {
    if (step > 0) { /* velocity Verlet */
      accelerate(0.5 * TIMESTEP);
      for (int i = 0; i < ATOMS; ++i)
        for (int a = 0; a < 3; ++a) positions[i][a] += TIMESTEP * velocities[i][a];
      require(equipot_evaluate(model, &structure, &results));
      accelerate(0.5 * TIMESTEP);
    }
    double kinetic = 0;
    for (int i = 0; i < ATOMS; ++i)
      for (int a = 0; a < 3; ++a) kinetic += 0.5 * MASS / ACCELERATION * velocities[i][a] * velocities[i][a];
    if (step == 0) first = potential + kinetic;
    if (step % 100 == 0 || step == steps)
      printf("step %5d  temperature %6.1f K  energy %.6f eV  drift %+.4f meV/atom\n", step,
             2 * kinetic / (3 * (ATOMS - 1) * BOLTZMANN), potential + kinetic,
             1e3 * (potential + kinetic - first) / ATOMS);
  }
  equipot_close(model);
  return 0;
}
