"""The record of integers that says to the compiled loops what a problem is."""

from __future__ import annotations

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.job import HEAD, fields_of, job_type

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xg xc xd xh xw         | the input and its strides: image, group, channel, depth, row, column
    runs nruns run              | offsets of the runs of terms into the source, how many; terms of a run
    plane line                  | runs of a depth of the kernel, of a row of it
    met_d met_h                 | where it is said which depths and rows of the kernel meet the input; 0: all
    inner inner_stop            | output rows of which all of the kernel's do
    found                       | how far behind the packed weight words say which blocks are not finite, 0 for none
    stage                       | runs that are summed before the next tile's turn comes
    st sd sh sw                 | the source that tiles read: a step of a term, of an output depth, row, column
    w wgroup wblock blocks      | the packed weight, a group of it, a block of output channels; blocks of a group
    pack row row_terms          | who packs a block when its turn comes (0: all are packed); bytes and terms of a row
    offsets tail_offsets        | where in a block that is packed each term of a row goes: in whole ones, in the last
    padded cuts                 | whether a block has more terms; whether taps are left out of it if it is finite
    room                        | where in its slab a worker keeps the block
    y yn yk yd yh yw            | the output and its strides: image, channel, depth, row, column
    oc od oh ow                 | output channels of a group, output sizes
    bias residual activation    | addresses, 0 for none
    groups bands band parts     | a unit of work: image, group, depth, stretch, band of rows, part of the blocks
    stretches columns           | pieces of an output row, of which ``ow`` is the size; columns of all
    deep                        | depths that read one slab
    rows wide                   | of a tile: rows, than which no band has fewer; output channels
    cut turn                    | columns that tiles of full size cover; rows until the others' turn comes, one narrower
    strip                       | columns that tiles of full size compute, those that two of them do twice
    full0 full1 less0 less1     | what computes the tiles of full size, and the others: of whole blocks, of the last
    wterm0 wterm1               | bytes of a term of a block's weights
    size                        | bytes of an element of the output
    fill slab slab_bytes        | who fills a slab (0 for none); where the workers' are, and how far apart
    sums                        | where in its slab a worker keeps the sums of a stage
    nc chunks item              | input channels; chunks that they are cut into, and bytes of a pixel's chunk
    lc ld lh                    | the slab's strides: chunk, depth, row
    kernel_d plane_step         | planes that an output depth spans; how far those are apart that are filled
    widths first last           | columns of a line, and which of these lie inside the input
    kernel_h                    | rows that an output row reads
    step_d step_h step_w        | stride of the convolution, in positions
    table_d table_h table_w     | input index of each padded position, -1 for zero, -2 for what is not read
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def located(job, unit):
    """Return the image, group, depth, first column and band of a unit of work without its part."""
    band, rest = unit % job.bands, unit // job.bands
    stretch, rest = rest % job.stretches, rest // job.stretches
    depth, rest = rest % job.od, rest // job.od
    # The last stretch overlaps the one before: what is computed twice comes out the same.
    return rest // job.groups, rest % job.groups, depth, min(stretch * job.ow, job.columns - job.ow), band
