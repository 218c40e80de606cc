"""The record of integers that says to the compiled loops what a problem is."""

from __future__ import annotations

from fastconv.backends.cpu.job import HEAD, fields_of, job_type

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh xw            | the input and its strides: image, channel, depth, row, column
    depths heights widths       | input sizes
    stride_d stride stride_w    | input positions from one output to the next
    before_d before_h before_w  | padding before
    reach_d reach_h reach_w     | input positions between the first and the last that an output reads
    y yn yk yd yh yw            | the output and its strides
    od oh ow bands band parts   | output sizes; bands of rows; parts of the channels
    channels inputs multiplier blocks   | output and input channels, those of each input channel; vectors of channels
    w wblock wgroup wrow wstep  | the weight; a channel (a vector of them), group, kernel row, kernel column of it
    groups count                | offsets of groups of kernel positions: depth and row of each; how many
    steps kernel spread         | offsets of the kernel's columns in bytes; how many; input columns between them
    bias residual activation    | addresses, 0 for none
    zeros                       | address of zeros that stand for padding
    far                         | whether what a tile reads next and writes is far away
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are
    slab_rows slab_row slab_cols item   | rows of a slab, bytes from one to the next; items of a row, and their bytes
    fill first last place phase | who fills a slab; items inside the input, where the first goes, bytes of a row's phase
    clean                       | whether items outside are zeros, which stay in the slab
    table_h table_w place_w     | input index of each padded position, -1 for zero, -2 not read; where it goes in a row
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)
