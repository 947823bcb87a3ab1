"""Compare the array libraries with the exact values and with one another.

This is what ``portconv verify`` runs. `cases` makes the problems and their numbers; `layers` and `onnx_model` read
other problems from files. `bounds` computes the exact values and the largest errors that rounding explains. `variants`
lists the ways to run a case. `comparison` compares the results of each way with the exact ones and with one another,
`figures` sums up the errors of one array, `report` those of all comparisons, and `page` writes the report as HTML.
"""

from .bounds import Exact, exact
from .cases import Case, cases
from .comparison import Comparison, Trial, compare, lacking, unserved
from .report import Report
from .variants import Variant, unsupported

__all__ = [
    "Case",
    "Comparison",
    "Exact",
    "Report",
    "Trial",
    "Variant",
    "cases",
    "compare",
    "exact",
    "lacking",
    "unserved",
    "unsupported",
]
