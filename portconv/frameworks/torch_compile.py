"""What torch.compile must know of portconv; it imports this module while it reads the code of a first call."""

from __future__ import annotations

from typing import Any

import torch

from ..engine.execution import OPAQUE

_compiler: Any = torch.compiler


def take(function: Any) -> None:
    """Let torch.compile take a function as one call."""
    _compiler.allow_in_graph(function)


for each in OPAQUE:
    take(each)
