"""What was measured of networks, kept as JSON: jobs that are measured again replace those that were there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from benchmarks.networks.measuring import Row
from benchmarks.places import RESULTS
from benchmarks.report import Report
from fastconv import files, networks

FORMAT = "fastconv networks benchmark"
SCHEMA = 2


def save(rows: list[Row], name: str) -> None:
    """Write rows to ``benchmarks/results/NAME.json``, with those of other jobs that are there.

    What was taken on another machine, or with other versions of the libraries, does not stay beside them.
    """
    report = Report("python -m benchmarks.networks")
    about = {"machine": report.machine, "versions": report.versions}
    merged = {_key(row): row for row in _found(name, about)}
    for row in rows:
        merged[_key(row)] = _completed(row, merged.get(_key(row)))
    data = {"format": FORMAT, "schema": SCHEMA, "recorded": report.recorded, **about}
    data["rows"] = [asdict(row) for row in sorted(merged.values(), key=_place)]
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps(data, indent=1) + "\n")


def _completed(row: Row, old: Row | None) -> Row:
    """Return a row with what was measured of it before and not now."""
    if old is None or row.seconds is not None or row.refusal is not None:
        return row
    return replace(old, memory=row.memory or old.memory, layers=row.layers or old.layers)


def load(name: str) -> list[Row]:
    """Return the rows that were saved under a name.

    Raises
    ------
    ValueError
        If there is no such file, or it is none of these.
    """
    path = RESULTS / f"{name}.json"
    try:
        return _rows(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"show: there is no {path}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as numbers of this command ({error})") from error


def _found(name: str, about: dict[str, Any]) -> list[Row]:
    """Return the rows of an earlier run, if it was on the same machine with the same versions."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    alike = data.get("schema") == SCHEMA and all(data[key] == json.loads(json.dumps(about[key])) for key in about)
    return _rows(data) if alike else []


def _rows(data: dict[str, Any]) -> list[Row]:
    if (data["format"], data["schema"]) != (FORMAT, SCHEMA):
        raise ValueError(f"format {data['format']!r}, schema {data['schema']!r}")
    return [Row(**row) for row in data["rows"]]


def _key(row: Row) -> tuple[Any, ...]:
    return row.network, row.batch, row.training, row.threads, row.entrant


def _place(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by; entrants stay in the order in which they were measured."""
    return row.threads, row.training, row.batch, list(networks.NETWORKS).index(row.network)
