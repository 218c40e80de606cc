"""Where benchmarks put what they make."""

from __future__ import annotations

from pathlib import Path

OUT = Path(__file__).parent / "out"
RESULTS = Path(__file__).parent / "results"
