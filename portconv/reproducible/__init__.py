"""The same bits on every library, device, thread count and batch: the result is defined, and computed exactly.

Operands are quantised to so many bits below the largest magnitude that shares a sum with them, the products of the
quantised are summed exactly, and the sum is rounded once. `scales` finds the powers of two, `slices` cuts what is
quantised into integers of so few bits that float64 sums their products exactly in any order (Ozaki, Ogita, Oishi and
Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix multiplication and its
applications", Numerical Algorithms 59, 2012), `limbs` adds up what comes of them and rounds it, `near` does without
slices where a product that is not exact is near enough to tell how its sum is rounded, `specials` works out what nans
and infinities make of a result, `probe` finds out whether a library's products are exact at all, and `product` puts it
together, by whichever algorithm multiplies.
"""
