"""Whether there are kernels for this CPU, which some tests need."""

from __future__ import annotations

import pytest

from portconv.kernels import state

WITHOUT = state.fault()
"""Why there are none; None if there are."""
needs_kernels = pytest.mark.skipif(WITHOUT is not None, reason=f"there are no kernels here: {WITHOUT}")
