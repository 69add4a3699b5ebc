"""Properties of one structure from a deployed model, each on the library of its field.

A command is one module here and one function in ``cli/properties.py``; what all share:

- `settings.Common`: what every command is told (its fields are options of the command line), light to import.
  A command with settings of its own has a dataclass of them beside it, in ``settings.py``.
- `start.prepare`: structure file and model → `start.Start`: atoms with their calculator, read, checked for
  elements, relaxed if wanted, and at a minimum, or an error; what was found goes into the output.
  ``model`` may be any ASE calculator instead of a file, which is how tests with known answers run.
- `start.need`: libraries that only an extra installs, or an error that names it.
- `start.evaluate`: energies, forces, stresses of many structures, with a progress bar.
- `output.Result`: numbers (units in key names), paragraphs, tables, pictures, other files;
  `output.check_folder` before the work, `output.write` after it: ``NAME.json``, ``NAME.yaml``, pictures,
  ``report.html``, each whole or absent, the JSON last. `output.show` prints paragraphs and tables.

So a property reads::

    def elastic(structure, model, common=None, settings=None) -> Result:
        need("spglib")
        start = prepare(structure, model, common, periodic=True)
        ...
        return Result("elastic", start.described | numbers, paragraphs, tables, pictures)

and its command ends with ``finish(result, common)``, which writes and prints.
"""
