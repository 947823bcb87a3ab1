"""The ways to compute a convolution: one module each, written once against the Array API namespace.

Each has `forward(geometry, backend, x, w, b)`, `input_grad(geometry, backend, dout, w)` and
`weight_grad(geometry, backend, dout, x)`, for batches of one dtype, padded with zeros:
`x` (N, C, *S), `w` (F, C/G, *K), `b` (F,) or None, `dout` (N, F, *P).

Where the caller has channels last, `x` and `dout` are views in that order of arrays that are not, and results are views
of arrays that lie in memory as the caller's do.
"""
