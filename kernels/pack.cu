// Copies an array so that its channels lie side by side, each group of them padded with zeros to whole chunks.
//
//     packed[outer, block, group, channel] = array[outer, block, group, channel]
//
// whatever the strides: `block` is four axes (a map's positions, a weight's channels and taps). A block of threads
// transposes a tile of it in shared memory, so that it reads and writes what is side by side.
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

struct PackParameters {
    const ELEMENT* array;
    ELEMENT* packed;
    // Of the array; of what is packed, in elements as well.
    long long outer, group, channel, axis[4];
    long long packed_outer, packed_group, packed_block;
    int blocks, channels;        // entries of `block`, channels of a group
    int tile_blocks, tile_channels;  // tile_blocks * (tile_channels + PAD) <= MOST; tile_channels: whole chunks
    int channels_fastest;        // of the array
    FastDiv<unsigned int> by_size[3];  // of the last three axes
    FastDiv<unsigned int> by_groups, by_block_tiles, by_channel_tiles;
    FastDiv<unsigned int> by_tile_blocks, by_tile_channels, by_tile_chunks;
};

KERNEL(pack, PackParameters, THREADS) {
    SHARED_ARRAY(ELEMENT, tile, MOST);
    const auto [above, channel_tile] = p.by_channel_tiles.divmod(blockIdx.x);
    const auto [high, block_tile] = p.by_block_tiles.divmod(above);
    const auto [outer, group] = p.by_groups.divmod(high);
    const int first_block = static_cast<int>(block_tile) * p.tile_blocks;
    const int first_channel = static_cast<int>(channel_tile) * p.tile_channels;
    const int line = p.tile_channels + PAD;
    const ELEMENT* const array = p.array + p.outer * outer + p.group * group;

    for (int i = static_cast<int>(threadIdx.x); i < p.tile_blocks * p.tile_channels; i += THREADS) {
        const auto [quotient, remainder] = p.channels_fastest ? p.by_tile_channels.divmod(i) : p.by_tile_blocks.divmod(i);
        const int block = static_cast<int>(p.channels_fastest ? quotient : remainder);
        const int channel = static_cast<int>(p.channels_fastest ? remainder : quotient);
        ELEMENT element = narrow<ELEMENT>(0);
        if (first_block + block < p.blocks && first_channel + channel < p.channels) {
            long long at = p.channel * (first_channel + channel);
            unsigned int index = first_block + block;
#pragma unroll
            for (int axis = 3; axis > 0; --axis) {
                const auto [rest, digit] = p.by_size[axis - 1].divmod(index);
                at += p.axis[axis] * digit;
                index = rest;
            }
            element = array[at + p.axis[0] * index];
        }
        tile[block * line + channel] = element;
    }
    __syncthreads();

    ELEMENT* const packed = p.packed + p.packed_outer * outer + p.packed_group * group;
    const int chunks = p.tile_channels / COUNT, all_chunks = ceil_div(p.channels, COUNT);
    for (int i = static_cast<int>(threadIdx.x); i < p.tile_blocks * chunks; i += THREADS) {
        const auto [block, chunk] = p.by_tile_chunks.divmod(i);
        const int at = first_block + static_cast<int>(block), channel = first_channel + static_cast<int>(chunk) * COUNT;
        if (at >= p.blocks || channel >= all_chunks * COUNT) continue;
        Vector<ELEMENT, COUNT> together;
#pragma unroll
        for (int j = 0; j < COUNT; j += PAD) {
            const auto word = load_vector<PAD>(tile + static_cast<int>(block) * line + static_cast<int>(chunk) * COUNT + j);
#pragma unroll
            for (int k = 0; k < PAD; ++k) together.at[j + k] = word.at[k];
        }
        store_vector<COUNT>(packed + p.packed_block * at + channel, together);
    }
}
