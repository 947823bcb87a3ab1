"""The same bits on every library, device, thread count and batch: the result is defined, and computed exactly.

Each operand is quantised: its elements are rounded to a fixed number of bits below the largest magnitude that shares a
sum with them. The products of quantised numbers are summed exactly, and the sum is rounded once. The modules, in the
order in which they build on one another:

- `probe` checks that a library's products of integers in float64 are exact, and `powers` holds the powers of two;
- `blocks` cuts arrays into blocks that stay in cache, and `magnitudes` looks for the largest magnitudes in them;
- `slicing` plans, in plain integers, how operands are cut into slices and long sums into chunks; `cutting` cuts arrays:
  slices are integers of so few bits that float64 sums their products exactly in any order (Ozaki, Ogita, Oishi and
  Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix multiplication and its
  applications", Numerical Algorithms 59, 2012);
- `operands` finds the scale of each operand, and `sliced_product` has an algorithm multiply the slices;
- `nonfinite_counts` counts which results are nan or infinite, by the rules of `nonfinite`;
- `limbs` holds exact sums and rounds them, `bias` adds a bias, and `rounding` makes results of all of these, or asks an
  algorithm that does all of it (`Algorithm.rounded`);
- `certified` rounds one float64 product without slices wherever the bound of its error proves that the result is the
  same: `window_sums` for outputs and input gradients, `correlation_sums` for weight gradients;
- `product` computes a product, `weight_grad` the weight gradient and `bias_grad` the gradient of a bias.
"""
