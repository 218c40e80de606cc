"""Saving and loading a network's state: ``.npz`` or ``.safetensors``, never pickle."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.nn.layer import Layer

# The format's names of dtypes.
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LONGEST_HEADER = 100 << 20


def save(network: Layer, path: str | os.PathLike[str]) -> None:
    """Write every learned array and running statistic to a file.

    Parameters
    ----------
    network : Layer
    path : path
        Ends in ``.npz`` or ``.safetensors``. The file is replaced as a whole.

    Raises
    ------
    ValueError
        If the path ends in neither, or in ``.npz`` and there is bfloat16, which that cannot hold.
    OSError
        If it cannot be written.
    """
    target = Path(path)
    write = _chosen(target, {".npz": _write_npz, ".safetensors": _write_safetensors})
    state = {name: _on_host(array) for name, array in network.state().items()}
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            write(file, state)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def load(network: Layer, path: str | os.PathLike[str]) -> None:
    """Read what `save` wrote into a network of the same layers.

    Raises
    ------
    ValueError
        If the path ends in neither ``.npz`` nor ``.safetensors``, the file is no such file, or its names and shapes
        are not the network's. Nothing is changed then.
    OSError
        If it cannot be read.
    """
    source = Path(path)
    read = _chosen(source, {".npz": _read_npz, ".safetensors": _read_safetensors})
    state = read(source)
    own = next(iter(network.state().values()), None)
    if own is not None and not isinstance(own, np.ndarray):
        import cupy

        state = {name: cupy.asarray(array) for name, array in state.items()}
    network.load_state(state)


def _chosen(path: Path, known: dict[str, Any]) -> Any:
    if path.suffix not in known:
        raise ValueError(f"path: expected {' or '.join(known)}, got {str(path)!r}")
    return known[path.suffix]


def _on_host(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


def _write_npz(file: Any, state: dict[str, Any]) -> None:
    strange = [name for name, array in state.items() if array.dtype.kind != "f"]
    if strange:
        raise ValueError(f"path: .npz cannot hold {state[strange[0]].dtype} ({strange[0]}): save as .safetensors")
    np.savez(file, **state)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as .npz ({error})") from error


def _write_safetensors(file: Any, state: dict[str, Any]) -> None:
    short, header, offset = {name: key for key, name in _NAMES.items()}, {}, 0
    for name, array in state.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": short[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for array in state.values():
        file.write(np.ascontiguousarray(array).tobytes())


def _read_safetensors(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > _LONGEST_HEADER or 8 + length > len(data):
            raise ValueError(f"a header of {length} bytes")
        header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
        return {name: _tensor(entry, body) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{path}: cannot be read as .safetensors ({type(error).__name__}: {error})") from error


def _tensor(entry: dict[str, Any], body: memoryview) -> Any:
    dtype, (start, stop) = arrays.dtype_named(_NAMES[entry["dtype"]]), entry["data_offsets"]
    if not 0 <= start <= stop <= len(body):
        raise ValueError(f"data from {start} to {stop} of {len(body)} bytes")
    return np.frombuffer(body[start:stop], dtype).reshape(entry["shape"])
