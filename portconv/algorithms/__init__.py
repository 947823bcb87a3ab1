"""The ways to compute a convolution: one module each, written once against the Array API namespace.

Each has `forward(geometry, backend, bounds, x, w, b)`, `input_grad(geometry, backend, bounds, dout, w)` and
`weight_grad(geometry, backend, bounds, dout, x)`, for batches of one dtype, padded with zeros:
`x` (N, C, *S), `w` (F, C/G, *K), `b` (F,) or None, `dout` (N, F, *P). `bounds` limit the blocks they work in.

Each also has `objection(geometry)`, which says what it serves where it does not serve that geometry, and
`work(geometry, purpose, bounds)`, how much it would do for the product of that name.

Where the caller has channels last, `x` and `dout` are views in that order of arrays that are not, and results are views
of arrays that lie in memory as the caller's do.
"""
