"""Time portconv and other libraries beside one another on real layers; all figures are ratios.

This is what ``portconv bench`` runs. `zoo` has the layers, `problem` their numbers and exact results, and `peers` what
is timed beside portconv. `measurement` times them in turns, `memory` measures their memory, and `report` sums up.
"""

from .measurement import NotMeasured, Row, measure, medians
from .peers import PEERS, Peer
from .report import Report, surroundings
from .zoo import HELD_OUT, ZOO, Layer

__all__ = [
    "HELD_OUT",
    "PEERS",
    "ZOO",
    "Layer",
    "NotMeasured",
    "Peer",
    "Report",
    "Row",
    "measure",
    "medians",
    "surroundings",
]
