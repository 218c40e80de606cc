// unfold (im2col): every window as a column. fold (col2im): every element gathers what stands for it in the columns.
//
// Macros: ELEMENT.

#include "windows.cuh"

using namespace fastconv;

struct UnfoldParameters {
    const ELEMENT* from;  // the map; in fold the columns
    ELEMENT* to;

    Units units;  // windows; in fold elements
    MapStrides map_strides;
    long long columns_image, columns_row, columns_window;
    WindowAxis axis[3];
};

constexpr int BATCH = 4;

KERNEL(unfold, UnfoldParameters, THREADS) {
    const Unit unit = own_unit<1>(p.units);
    if (!unit.valid) return;
    const WindowAxis(&axis)[3] = p.axis;
    const int taps = axis[0].kernel * axis[1].kernel * axis[2].kernel;
    const long long window = (static_cast<long long>(unit.d) * axis[1].out + unit.h) * axis[2].out + unit.w;
    const ELEMENT* const map = p.from + p.map_strides.at(unit.image, unit.channel, 0, 0, 0);
    ELEMENT* to = p.to + p.columns_image * unit.image + p.columns_row * taps * unit.channel + p.columns_window * window;
    const auto start = [](const WindowAxis& of, int at) { return at * of.stride - of.before; };
    const auto outside = [](const WindowAxis& of, int at) { return at < 0 || at >= of.size; };
    const int first = start(axis[2], unit.w);
    for (int i = 0, d = start(axis[0], unit.d); i < axis[0].kernel; ++i, d += axis[0].dilation) {
        for (int j = 0, h = start(axis[1], unit.h); j < axis[1].kernel; ++j, h += axis[1].dilation) {
            const bool padding = outside(axis[0], d) || outside(axis[1], h);
            const ELEMENT* const row = map + p.map_strides.axis[0] * d + p.map_strides.axis[1] * h;
            for (int k = 0; k < axis[2].kernel; k += BATCH) {
                ELEMENT loaded[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; ++b) {
                    const int w = first + (k + b) * axis[2].dilation;
                    const bool reads = k + b < axis[2].kernel && !padding && !outside(axis[2], w);
                    loaded[b] = reads ? row[p.map_strides.axis[2] * w] : narrow<ELEMENT>(0);
                }
#pragma unroll
                for (int b = 0; b < BATCH; ++b) {
                    if (k + b >= axis[2].kernel) break;
                    *to = loaded[b];
                    to += p.columns_row;
                }
            }
        }
    }
}

KERNEL(fold, UnfoldParameters, THREADS, 3) {
    using Sum = Accumulator<ELEMENT>;
    const Unit unit = own_unit<1>(p.units);
    if (!unit.valid) return;
    const WindowAxis(&axis)[3] = p.axis;
    const int taps = axis[0].kernel * axis[1].kernel * axis[2].kernel;
    const ELEMENT* const from = p.from + p.columns_image * unit.image + p.columns_row * taps * unit.channel;
    const Span depth = axis[0].windows(unit.d), rows = axis[1].windows(unit.h), columns = axis[2].windows(unit.w);
    Sum sum = 0;
    for (int d = depth.first; d < depth.stop; ++d) {
        const int i = axis[0].tap(d, unit.d);
        if (i < 0) continue;
        for (int h = rows.first; h < rows.stop; ++h) {
            const int j = axis[1].tap(h, unit.h);
            if (j < 0) continue;
            const long long row = (static_cast<long long>(i) * axis[1].kernel + j) * axis[2].kernel;
            const long long line = (static_cast<long long>(d) * axis[1].out + h) * axis[2].out;
            for (int w = columns.first; w < columns.stop; w += BATCH) {
                ELEMENT loaded[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; ++b) {
                    const int k = w + b < columns.stop ? axis[2].tap(w + b, unit.w) : -1;
                    loaded[b] = k < 0 ? narrow<ELEMENT>(0)
                                      : from[p.columns_row * (row + k) + p.columns_window * (line + w + b)];
                }
#pragma unroll
                for (int b = 0; b < BATCH; ++b) sum += widen(loaded[b]);
            }
        }
    }
    p.to[p.map_strides.at(unit.image, unit.channel, unit.d, unit.h, unit.w)] = narrow<ELEMENT>(sum);
}
