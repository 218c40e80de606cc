"""The record of integers that says to the compiled loops what a problem is."""

from __future__ import annotations

from fastconv.backends.cpu.job import fields_of, job_type

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh xw               | the input, or its gradient, and its strides: image, channel, row, column
    y yn yk yh yw               | the output, or its gradient: image, channel, row, column
    w wposition wrow            | the weight, or its gradient: a position, a row of its matrix
    bias bk bh bq               | address, 0 for none; strides of channel, row, column
    residual activation         | addresses, 0 for none; the residual lies like y
    last                        | whether the channels of y lie together, and not its columns
    images channels groups      | in all; input channels of a group
    oc oh ow                    | output channels of a group, output sizes
    iblock cblock               | images and channels that are done together
    iblocks cblocks parts       | how many such blocks there are; pieces of a row of outputs
    kernel_h kernel_w dilation_h dilation_w step_h step_w    | the convolution, in positions
    heights widths line         | the slab: rows of a channel, columns and bytes of a line
    first stop                  | columns of a line that lie inside the input
    top left size_h size_w      | where in the slab the input begins, and its size
    table_h table_w             | input index of each padded position, -1 for zero
    pixel                       | bytes of a column of the slab
    patch                       | bytes of a window
    offsets                     | where in the slab the elements of a window are, if images are the lanes
    scratch scratch_bytes       | where the workers' scratch is, and how far apart
    slab patches matrix sums    | places in it
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
