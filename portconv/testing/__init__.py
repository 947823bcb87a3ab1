"""Run a function on several array libraries, and compare the results within derived tolerances.

`assert_consistent` runs a function on the same numbers on each library. It compares namespaces, devices, shapes and
dtypes first, and then values. docs/accuracy.md derives the tolerances. A pytest plugin gives each test a library and a
device: it has the fixtures `xp` and `portconv_target`, and the marks `skip_backends` and `xfail_backends`. This
package does not need pytest. docs/testing.md shows by example how to use all of it.

`libraries` finds the libraries and devices, `structures` takes apart what a function returns, `values` compares two
arrays, `tolerances` bounds rounding errors, and `consistency` is `assert_consistent`.
"""

from .consistency import LISTED as LISTED
from .consistency import Agreement, assert_consistent
from .libraries import Target, targets
from .libraries import survey as survey
from .tolerances import conv_grads_tolerance, gamma, sum_tolerance
from .values import Comparison

__all__ = [
    "Agreement",
    "Comparison",
    "Target",
    "assert_consistent",
    "conv_grads_tolerance",
    "gamma",
    "sum_tolerance",
    "targets",
]
