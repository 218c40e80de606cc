"""The loops of a fully connected layer whose lanes are images: blocks of outputs, each with all images."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.local.batch_loops import store_lines, turn_columns
from fastconv.backends.cpu.local.batch_tile import multiply_batch
from fastconv.backends.cpu.memory import record

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn                        | the input and its images, whose elements lie together
    w row column                | the weight, its rows and the elements of one
    y yn                        | the output and its images
    terms images oc             | inputs of an image, images, outputs of an image
    share block                 | rows of the weight: a unit of work, those whose sums are stored together
    bias residual activation    | addresses, 0 for none; the residual lies like y
    slab slab_bytes             | where the workers' scratch is, and how far apart
    matrix                      | in it, behind the images that were turned: sums
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@cache
def loops(rows: int, vectors: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled loops for a tile's shape: ``run(job, start, stop, worker)`` does a range of units."""
    size, wide = size_of(format), size_of(computed(format))
    many, pixel = vectors * lanes, vectors * lanes * wide
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        matrix = slab + job.matrix
        for image in range(0, job.images, many):
            images = min(many, job.images - image)
            x = job.x + image * job.xn
            turn_columns(lanes, format, size, wide, pixel, x, job.xn, size, images, job.terms, slab, pixel)
            # The last tile overlaps the one before: what is computed twice comes out the same.
            for begin in range(start * job.share, min(stop * job.share, job.oc), job.block):
                first, end = min(begin, job.oc - rows), min(begin + job.block, job.oc)
                for k_ in range(first, end, rows):
                    k = min(k_, job.oc - rows)
                    multiply_batch(
                        rows, vectors, lanes, format, fused, job.w + k * job.row, job.row, job.column,
                        slab, 0, 1, pixel, job.terms, job.bias + k * size if job.bias else 0, size,
                        matrix + (k - first) * pixel, pixel,
                    )  # fmt: skip
                at = image * job.yn + first * size
                store_lines(
                    lanes, format, wide, matrix, pixel, end - first, images, job.y + at, job.yn,
                    job.residual + at if job.residual else 0, job.activation, size,
                )  # fmt: skip

    return run
