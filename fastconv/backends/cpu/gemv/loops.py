"""The loops of a fully connected layer: some rows of the weight after others, each with all images."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.elements import widen_some
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.local.tile import finish, multiply, multiply_back
from fastconv.backends.cpu.memory import clear, copy, record

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn                        | the input and its images, whose elements lie together
    w row                       | the weight and its rows
    y yn                        | the output and its images
    terms images oc             | inputs of an image, images, outputs of an image
    share                       | a unit of work: rows of the weight
    bias residual activation    | addresses, 0 for none; the residual lies like y
    slab slab_bytes             | where the workers' scratch is, and how far apart
    line image                  | in it: sums of an image, an image that is widened
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def _widen(job, lanes, format, size, wide, target):
    """Copy all images to where they are stored as they are computed."""
    for image in range(job.images):
        for i in range(0, job.terms, lanes):
            from_, to = job.x + image * job.xn + i * size, target + image * job.image + i * wide
            widen_some(lanes, format, from_, to, min(lanes, job.terms - i))


@inlined
def _finish(job, lanes, format, size, wide, matrix, first, count):
    """Bring sums of ``count`` outputs from the first on into the output."""
    for image in range(job.images):
        for i in range(0, count, lanes):
            at = image * job.yn + (first + i) * size
            finish(
                lanes, format, matrix + image * job.line + i * wide, min(lanes, count - i), job.y + at,
                job.bias + (first + i) * size if job.bias else 0,
                job.residual + at if job.residual else 0, job.activation,
            )  # fmt: skip


@cache
def loops(rows: int, images: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled loops for a tile's shape: ``run(job, start, stop, worker)`` does a range of units."""
    size, wide = size_of(format), size_of(computed(format))
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        matrix = job.slab + worker * job.slab_bytes
        x, next_x = job.x, job.xn
        if size != wide:
            x, next_x = matrix + job.images * job.line, job.image
            _widen(job, lanes, format, size, wide, x)
        sums = job.slab + (worker + 1) * job.slab_bytes - (rows * images + lanes) * wide
        for unit in range(start, stop):
            # The last tile overlaps the one before: what is computed twice comes out the same.
            first, end = min(unit * job.share, job.oc - rows), min((unit + 1) * job.share, job.oc)
            for k_ in range(first, end, rows):
                k = min(k_, job.oc - rows)
                to = matrix + (k - first) * wide
                for j_ in range(0, job.images, images):
                    j = min(j_, job.images - images)
                    multiply(
                        rows, images, lanes, format, fused, job.w + k * job.row, job.row, x + j * next_x, next_x,
                        job.terms // lanes, job.terms % lanes, sums,
                    )  # fmt: skip
                    for i in range(images):
                        copy(to + (j + i) * job.line, sums + i * rows * wide, rows * wide)
            _finish(job, lanes, format, size, wide, matrix, first, end - first)

    return run


@cache
def loops_across(rows: int, images: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled loops for a weight that was transposed: its rows are inputs, and its outputs lie together."""
    size, wide = size_of(format), size_of(computed(format))
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        matrix = job.slab + worker * job.slab_bytes
        x, next_x = job.x, job.xn
        if size != wide:
            x, next_x = matrix + job.images * job.line, job.image
            _widen(job, lanes, format, size, wide, x)
        for unit in range(start, stop):
            first = unit * job.share
            count = min(job.share, job.oc - first)
            whole, tail = count // lanes, count % lanes
            clear(matrix, job.images * job.line)
            for i in range(0, job.terms - rows + 1, rows):
                w = job.w + i * job.row + first * size
                for j in range(0, job.images - images + 1, images):
                    multiply_back(
                        rows, images, lanes, format, fused, w, job.row, x + i * wide + j * next_x, next_x,
                        matrix + j * job.line, job.line, whole, tail, 1,
                    )  # fmt: skip
                for j in range(job.images // images * images, job.images):
                    multiply_back(
                        rows, 1, lanes, format, fused, w, job.row, x + i * wide + j * next_x, next_x,
                        matrix + j * job.line, job.line, whole, tail, 1,
                    )  # fmt: skip
            for i in range(job.terms // rows * rows, job.terms):
                for j in range(job.images):
                    multiply_back(
                        1, 1, lanes, format, fused, job.w + i * job.row + first * size, job.row,
                        x + i * wide + j * next_x, next_x, matrix + j * job.line, job.line, whole, tail, 1,
                    )  # fmt: skip
            _finish(job, lanes, format, size, wide, matrix, first, count)

    return run
