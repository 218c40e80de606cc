"""What depthwise algorithms with channels in the lanes have in common: channels-last maps are read as they lie."""

from __future__ import annotations

from abc import abstractmethod

from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import ConvWork, refuses_halves
from fastconv.problem import ConvProblem

# Steps of columns that tiles are compiled for, at most.
_STEPS = 2


def refuses_other_channels(problem: ConvProblem) -> str | None:
    """Return why not, if channels are not in the lanes as they lie in memory, each on its own."""
    if problem.ndim == 0:
        return "slides over spatial axes, of which a linear layer has none"
    if problem.layout != "channels_last":
        return "takes channels that are neighbours in memory"
    if not problem.groups == problem.ic == problem.oc:
        return f"takes a channel a group, not {problem.ic // problem.groups} and {problem.oc // problem.groups}"
    if problem.padding_mode != "zeros":
        return f"pads with zeros, not in mode {problem.padding_mode!r}"
    return refuses_halves(problem)


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
