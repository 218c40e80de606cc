// Copies arrays so that their channels lie side by side, each group of them padded with zeros to whole chunks.
//
//     packed[outer, block, group, channel] = array[outer, block, group, channel]
//
// whatever the strides: `block` is four axes (a map's positions, a weight's channels and taps). A block of threads
// transposes a tile in shared memory, so that it reads and writes what is side by side. One launch packs two arrays.
//
// Macros: ELEMENT.

#include "elements.cuh"
#include "fastdiv.cuh"

using namespace fastconv;

constexpr int THREADS = 256;
constexpr int COUNT = vector_count<ELEMENT>;
// A line of the tile in shared memory is as many elements longer as make one word: no bank is met twice in a row.
constexpr int PAD = 4 / sizeof(ELEMENT);
constexpr int MOST = 4608;

struct Job {
    // Strides of the array; of what is packed, in elements as well.
    long long outer, group, channel, axis[4];
    long long packed_outer, packed_group, packed_block;
    int blocks, channels;            // entries of `block`, channels of a group
    int tile_blocks, tile_channels;  // tile_blocks * (tile_channels + PAD) <= MOST; tile_channels: whole chunks
    int channels_fastest;            // of the array
    FastDiv<unsigned int> by_size[3];  // of the last three axes
    FastDiv<unsigned int> by_groups, by_block_tiles, by_channel_tiles, by_tile_fastest, by_tile_chunks;

    __device__ long long block_offset(unsigned int index) const {
        long long result = 0;
#pragma unroll
        for (int i = 3; i > 0; --i) {
            const auto [rest, digit] = by_size[i - 1].divmod(index);
            result += axis[i] * digit;
            index = rest;
        }
        return result + axis[0] * index;
    }
};

struct PackParameters {
    const ELEMENT* array[2];
    ELEMENT* packed[2];
    unsigned int tiles;  // of the first array
    Job job[2];
};

KERNEL(pack, PackParameters, THREADS) {
    SHARED_ARRAY(ELEMENT, tile, MOST);
    const bool second = blockIdx.x >= p.tiles;
    const Job& job = p.job[second];
    const auto [above, channel_tile] = job.by_channel_tiles.divmod(blockIdx.x - (second ? p.tiles : 0));
    const auto [high, block_tile] = job.by_block_tiles.divmod(above);
    const auto [outer, group] = job.by_groups.divmod(high);
    const int first_block = static_cast<int>(block_tile) * job.tile_blocks;
    const int first_channel = static_cast<int>(channel_tile) * job.tile_channels;
    const int line = job.tile_channels + PAD;
    const ELEMENT* const array = p.array[second] + job.outer * outer + job.group * group + job.channel * first_channel;
    const int blocks = min(job.tile_blocks, job.blocks - first_block);
    const int channels = min(job.tile_channels, job.channels - first_channel);

    // A thread stays on one block, or on one channel, whichever neighbours have side by side.
    const int fastest = static_cast<int>(job.by_tile_fastest.divisor);
    const auto [first, at] = job.by_tile_fastest.divmod(threadIdx.x);
    const int step = fastest < THREADS ? THREADS / fastest : 1;
    if (static_cast<int>(first) < step) {
        if (!job.channels_fastest) {
            const int block = static_cast<int>(at);
            const bool valid = block < blocks;
            const ELEMENT* const from = array + (valid ? job.block_offset(first_block + block) : 0);
#pragma unroll 4
            for (int channel = static_cast<int>(first); channel < job.tile_channels; channel += step) {
                tile[block * line + channel] =
                    valid && channel < channels ? from[job.channel * channel] : narrow<ELEMENT>(0);
            }
        } else {
            for (int block = static_cast<int>(first); block < blocks; block += step) {
                const ELEMENT* const from = array + job.block_offset(first_block + block);
                for (int channel = static_cast<int>(at); channel < job.tile_channels; channel += THREADS) {
                    const bool valid = channel < channels;
                    tile[block * line + channel] = valid ? from[job.channel * channel] : narrow<ELEMENT>(0);
                }
            }
        }
    }
    __syncthreads();

    ELEMENT* const packed = p.packed[second] + job.packed_outer * outer + job.packed_group * group;
    const int chunks = job.tile_channels / COUNT, all_chunks = ceil_div(job.channels, COUNT);
    for (int i = static_cast<int>(threadIdx.x); i < blocks * chunks; i += THREADS) {
        const auto [block, chunk] = job.by_tile_chunks.divmod(i);
        const int channel = first_channel + static_cast<int>(chunk) * COUNT;
        if (channel >= all_chunks * COUNT) continue;
        const ELEMENT* const from = tile + static_cast<int>(block) * line + static_cast<int>(chunk) * COUNT;
        Vector<ELEMENT, COUNT> together;
#pragma unroll
        for (int j = 0; j < COUNT; j += PAD) {
            const auto word = load_vector<PAD>(from + j);
#pragma unroll
            for (int k = 0; k < PAD; ++k) together.at[j + k] = word.at[k];
        }
        store_vector<COUNT>(packed + job.packed_block * (first_block + static_cast<int>(block)) + channel, together);
    }
}
