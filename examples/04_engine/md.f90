! Molecular dynamics of silicon at constant energy, by equipot's C interface: ./md MODEL [STEPS]
! Units: eV, Å, fs and u, so a force divided by a mass is multiplied by acceleration.
program md
  use, intrinsic :: iso_c_binding
  implicit none
  type, bind(c) :: equipot_structure
    integer(c_int64_t) :: num_atoms
    type(c_ptr) :: types, positions, cell
    integer(c_int32_t) :: periodic(3)
    type(c_ptr) :: field = c_null_ptr, watched = c_null_ptr
    integer(c_int32_t) :: anew = 0
  end type
  type, bind(c) :: equipot_results
    type(c_ptr) :: energy = c_null_ptr, atom_energies = c_null_ptr, forces = c_null_ptr, virial = c_null_ptr, &
                   atom_virials = c_null_ptr, atom_heat_virials = c_null_ptr, features = c_null_ptr, outputs = c_null_ptr, &
                   derivatives = c_null_ptr, closer = c_null_ptr
  end type
  interface
    integer(c_int) function equipot_open(path, model) bind(c)
      import :: c_int, c_char, c_ptr
      character(kind=c_char), intent(in) :: path(*)
      type(c_ptr), intent(out) :: model
    end function
    integer(c_int) function equipot_evaluate(model, structure, results) bind(c)
      import :: c_int, c_ptr, equipot_structure, equipot_results
      type(c_ptr), value :: model
      type(equipot_structure) :: structure ! no intent: the arrays behind it count, too
      type(equipot_results) :: results
    end function
    type(c_ptr) function equipot_message() bind(c)
      import :: c_ptr
    end function
    subroutine equipot_close(model) bind(c)
      import :: c_ptr
      type(c_ptr), value :: model
    end subroutine
  end interface

  integer, parameter :: cells = 3, atoms = 8 * cells**3
  real(c_double), parameter :: lattice = 5.46d0, mass = 28.085d0, temperature = 600d0, timestep = 1d0
  real(c_double), parameter :: boltzmann = 8.617333d-5, acceleration = 9.648533d-3
  real(c_double), parameter :: basis(3, 8) = 0.25d0 * reshape([0, 0, 0, 0, 2, 2, 2, 0, 2, 2, 2, 0, &
                                                             1, 1, 1, 1, 3, 3, 3, 1, 3, 3, 3, 1], [3, 8])
  real(c_double), target :: x(3, atoms), forces(3, atoms), cell(3, 3), potential
  real(c_double) :: v(3, atoms), u(3, atoms), first, kinetic
  integer(c_int64_t), target :: types(atoms)
  type(equipot_structure) :: structure
  type(equipot_results) :: results
  type(c_ptr) :: model
  character(len=1000) :: path, count
  integer :: i, step, steps

  call get_command_argument(1, path); call get_command_argument(2, count)
  steps = 1000
  if (len_trim(count) > 0) read (count, *) steps
  call require(equipot_open(trim(path) // c_null_char, model))
  types = 0 ! the model of this example knows silicon only
  do i = 0, atoms - 1
    x(:, i + 1) = lattice * (basis(:, mod(i, 8) + 1) + [mod(i / 8, cells), mod(i / 8 / cells, cells), i / 8 / cells**2])
  end do
  call random_init(.true., .false.) ! the same velocities in every run
  call random_number(v); call random_number(u)
  v = sqrt(-2 * log(1 - v)) * cos(6.283185307179586d0 * u) * sqrt(boltzmann * temperature * acceleration / mass)
  v = v - spread(sum(v, dim=2) / atoms, 2, atoms)
  cell = 0
  forces = 0; potential = 0 ! both are written by the library
  do i = 1, 3
    cell(i, i) = cells * lattice
  end do
  structure = equipot_structure(atoms, c_loc(types), c_loc(x), c_loc(cell), [1, 1, 1])
  results = equipot_results(energy=c_loc(potential), forces=c_loc(forces))
  call require(equipot_evaluate(model, structure, results))
  do step = 0, steps
    if (step > 0) then ! velocity Verlet
      v = v + 0.5d0 * timestep * acceleration / mass * forces
      x = x + timestep * v
      call require(equipot_evaluate(model, structure, results))
      v = v + 0.5d0 * timestep * acceleration / mass * forces
    end if
    kinetic = 0.5d0 * mass / acceleration * sum(v**2)
    if (step == 0) first = potential + kinetic
    if (mod(step, 100) == 0) print '(a,i5,a,f7.1,a,f15.6,a,f8.4,a)', 'step ', step, '  temperature ', &
      2 * kinetic / (3 * (atoms - 1) * boltzmann), ' K  energy ', potential + kinetic, ' eV  drift ', &
      1d3 * (potential + kinetic - first) / atoms, ' meV/atom'
  end do
  call equipot_close(model)

contains
  subroutine require(status)
    integer(c_int), intent(in) :: status
    character(kind=c_char), pointer :: text(:)
    if (status == 0) return
    call c_f_pointer(equipot_message(), text, [1000])
    do i = 1, 1000
      if (text(i) == c_null_char) exit
      write (*, '(a)', advance='no') text(i)
    end do
    stop 1
  end subroutine
end program
