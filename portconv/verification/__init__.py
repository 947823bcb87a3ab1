"""Do the array libraries agree? Cases, the exact values and how far from them an honest result can be, and the judge.

What ``portconv verify`` runs. `cases` makes the problems and their numbers, `bounds` the exact values and the largest
errors that rounding explains, `comparison` holds each backend's results against both, `report` sums up.
"""

from .bounds import Exact, exact
from .cases import Case, cases
from .comparison import Comparison, compare, unsupported
from .report import Report

__all__ = ["Case", "Comparison", "Exact", "Report", "cases", "compare", "exact", "unsupported"]
