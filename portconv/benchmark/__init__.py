"""How fast is it, beside what else there is? Layers, peers, measurement, and figures that are ratios alone.

What ``portconv bench`` runs. `zoo` has the layers, `problem` their numbers and exact results, `peers` what is timed
beside portconv, `measurement` times all of them in turn, `memory` says what they take, `report` sums up.
"""

from .measurement import Left, Row, measure, medians
from .peers import PEERS, Peer
from .report import Report, surroundings
from .zoo import ZOO, Layer

__all__ = ["PEERS", "ZOO", "Layer", "Left", "Peer", "Report", "Row", "measure", "medians", "surroundings"]
