"""Kernels that are generated for this CPU, for `portconv.algorithms.compiled`.

To know this house, read in this order:

- `values`, `record`, `emit` and `bits` write instructions for LLVM; `target` says for which CPU;
- `tile` has the sums in registers, and `panels` the simplest family that uses them (`panel_plan` plans it, and
  `panel_copies` brings it its cells); `winograd`, `rows`, `tall` and `depthwise` are the others that compute outputs,
  `lone` and `part_stores` parts of them, and `karatsuba` has the tiles of integers;
- `packs` and `casts` copy narrow numbers, and `dots` multiplies packs of them;
- `input_grads` and `depthwise_input_grads` compute gradients of inputs, `weights`, `winograd_weights`,
  `depthwise_weights` and `swept_weights` those of filters, and `channel_sums` those of biases; `mirror` and `turned`
  copy;
- where channels come last, `last_depthwise` and `last_input_grads`, `last_depthwise_weights` (`last_plan`) compute;
- reproducible products are made of `doubles`: `magnitudes` and `scales` say at what scale `quantised` rounds operands,
  `rounded` (`rounded_plan` plans it) rounds their product, and `window_terms` and `filter_terms` add up single sums
  exactly;
- `families` lists all of them, and `choice` plans with those that serve a product;
- `share` cuts the work for threads by `words` in memory, `standby` is what those run that help, and `team` has them;
- `compile` makes code of a module, `cache` keeps it on disk, `call` calls it, and `state` says whether there is any.

Nothing is specialised on shape; each kernel is made for float32 and for float64, and those of plain sums for integers
too. A plan is numbers in memory (`sizes`, `outer`), which a kernel reads.
"""
