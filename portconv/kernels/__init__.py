"""Kernels that are generated for this CPU, for `portconv.algorithms.compiled`.

To know this house, read in this order:

- `values`, `record`, `emit` and `bits` write instructions for LLVM; `target` says for which CPU;
- `tile` has the sums in registers, and `panels` the simplest family that uses them (`panel_plan` plans it, and
  `panel_copies` brings it its cells); `winograd`, `rows`, `tall` and `depthwise` are the others, `lone` and
  `part_stores` parts of them; `families` lists them, and `choice` chooses one;
- `share` cuts the work for threads, `standby` is what those run that help, and `team` has them;
- `compile` makes code of a module, `cache` keeps it on disk, `call` calls it, and `state` says whether there is any.

Nothing is specialised on shape. A plan is numbers in memory (`sizes`, `outer`), which a kernel reads.
"""
