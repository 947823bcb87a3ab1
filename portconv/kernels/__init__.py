"""Kernels that are generated for this CPU, for `portconv.algorithms.compiled`."""
