"""The dtypes that are fastconv's in PyTorch's place: those of the innermost open `use` block, none outside of one."""

from __future__ import annotations

import torch

dtypes: frozenset[torch.dtype] = frozenset()
