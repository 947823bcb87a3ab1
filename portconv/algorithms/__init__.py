"""The ways to compute a convolution: one module each, written once against the Array API namespace.

Each has `forward(geometry, backend, x, w, b)`, `input_grad(geometry, backend, dout, w)` and
`weight_grad(geometry, backend, dout, x)`, for batched, channels-first arrays of one dtype:
`x` (N, C, *S), `w` (F, C/G, *K), `b` (F,) or None, `dout` (N, F, *P).
"""
