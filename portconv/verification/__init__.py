"""Do the array libraries agree? Cases, the exact values and how far from them an honest result can be, and the judge.

What ``portconv verify`` runs. `cases` makes the problems and their numbers, `layers` and `onnx_model` read other ones
from files, `bounds` has the exact values and the largest errors that rounding explains, `variants` the ways to run a
case, `comparison` holds each one's results against the exact ones and one another, `figures` are what it finds,
`report` sums up, and `page` is the report to read.
"""

from .bounds import Exact, exact
from .cases import Case, cases
from .comparison import Comparison, compare, unserved
from .report import Report
from .variants import Variant, unsupported

__all__ = [
    "Case",
    "Comparison",
    "Exact",
    "Report",
    "Variant",
    "cases",
    "compare",
    "exact",
    "unserved",
    "unsupported",
]
