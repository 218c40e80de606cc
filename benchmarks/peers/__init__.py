"""The libraries that fastconv is measured against, one file each. All are optional."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.ncnn import Ncnn
from benchmarks.peers.onnxruntime import OnnxRuntime
from benchmarks.peers.openvino import OpenVino
from benchmarks.peers.peer import Peer
from benchmarks.peers.scipy import SciPy
from benchmarks.peers.torch import Torch, TorchChannelsLast
from benchmarks.peers.torch_prepacked import TorchPrepacked

__all__ = ["PEERS", "Peer", "select"]

PEERS: tuple[Peer, ...] = (
    Torch(),
    TorchChannelsLast(),
    TorchPrepacked(),
    OnnxRuntime(),
    OpenVino(),
    Ncnn(),
    SciPy(),
)


def select(words: Sequence[str]) -> list[Peer]:
    """Return the peers that ``words`` name: ``all``, ``none``, or names; a library's name stands for all its rows.

    Raises
    ------
    ValueError
        If a word names no peer.
    """
    if list(words) == ["all"]:
        return list(PEERS)
    if list(words) == ["none"]:
        return []
    known = {word for peer in PEERS for word in (peer.name, peer.library)}
    for word in words:
        if word not in known:
            raise ValueError(f"peers: no {word!r}; expected all, none, or some of {', '.join(sorted(known))}")
    return [peer for peer in PEERS if peer.name in words or peer.library in words]
