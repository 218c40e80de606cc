"""What depthwise algorithms with channels in the lanes have in common: channels-last maps are read as they lie."""

from __future__ import annotations

from abc import abstractmethod

from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import ConvWork

# Steps of columns that tiles are compiled for, at most.
_STEPS = 2


class ChannelsWork(ConvWork):
    """A problem as loops over vectors of channels take it; see `ConvWork`."""

    @property
    @abstractmethod
    def most_together(self) -> int:
        """Vectors of channels of which the caches hold what tiles keep coming back to."""

    @property
    def steps(self) -> tuple[int, int]:
        """Columns from one output and from one kernel position to the next as tiles are compiled for, or 0 for any."""
        width = self.axes[2]
        return (width.stride, width.dilation) if max(width.stride, width.dilation) <= _STEPS else (0, 0)

    @property
    def vector(self) -> int:
        """Bytes of a vector."""
        return self.lanes * self.size

    @property
    def blocks(self) -> int:
        """Vectors of all channels."""
        return -(-self.problem.ic // self.lanes)

    @property
    def part(self) -> int:
        """Vectors of channels that are done together: neighbours in memory."""
        return -(-self.blocks // -(-self.blocks // max(1, self.most_together)))

    @property
    def parts(self) -> int:
        return -(-self.blocks // self.part)

    @property
    def zero_bytes(self) -> int:
        """Bytes of zeros that stand for the channels of a pixel of padding."""
        return self.part * self.vector + LINE
