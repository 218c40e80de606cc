// Gradients of pools: every element gathers from the windows that read it, always in the same order.
//
// A thread has a few neighbouring elements of one column, which are read by much the same windows, of one channel or of
// 16 bytes of channels; threads side by side have neighbouring columns or channels. A maximum's gradient goes to the
// element that its index names, one of a mean or a norm to all elements of the window.
//
// Macros: ELEMENT; FAMILY (0: the kernels of means, 1: of maxima, 2: of norms).

#include "windows.cuh"

using namespace fastconv;

struct GradientParameters {
    const ELEMENT* dy;
    const long long* indices;
    const ELEMENT* x;  // norms
    const ELEMENT* y;
    ELEMENT* dx;

    Units units;
    MapStrides dy_strides, index_strides, x_strides, y_strides, dx_strides;
    WindowAxis axis[3];
    double divisor;  // of every window; 0: each has its own
    double norm;
    double window;  // elements of a window
    int counts_padding;
};

using Sum = Accumulator<ELEMENT>;

constexpr int VECTOR = vector_count<ELEMENT>;
// Loads that are on their way together.
constexpr int BATCH = 2;

// What a thread has: elements of a column, and the windows that reach over them.
template <int rows>
struct Elements {
    Unit unit;
    Span depth, columns, together;
    Span spans[rows];

    __device__ Elements(const GradientParameters& p, const Unit& unit_)
        : unit(unit_), depth(p.axis[0].windows(unit_.d)), columns(p.axis[2].windows(unit_.w)), together{0, 0, 1} {
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            spans[r] = {0, 0, 1};
            if (!has(p, r)) continue;
            spans[r] = p.axis[1].windows(unit.h + r);
            if (r == 0) together = spans[0];
            together.stop = max(together.stop, spans[r].stop);
        }
    }

    __device__ bool has(const GradientParameters& p, int r) const {
        return r < p.units.rows && unit.h + r < p.axis[1].size;
    }
};

template <int channels, int rows>
__device__ void store(const GradientParameters& p, const Elements<rows>& elements, const Sum (&sums)[rows][channels]) {
    const Unit& unit = elements.unit;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        if (!elements.has(p, r)) continue;
        ELEMENT results[channels];
#pragma unroll
        for (int i = 0; i < channels; ++i) results[i] = narrow<ELEMENT>(sums[r][i]);
        store_all(p.dx + p.dx_strides.at(unit.image, unit.channel, unit.d, unit.h + r, unit.w), results);
    }
}

template <int channels, int rows>
__device__ void clear(Sum (&sums)[rows][channels]) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
        for (int i = 0; i < channels; ++i) sums[r][i] = 0;
    }
}

template <int channels, int rows>
__device__ void route(const GradientParameters& p) {
    const Unit unit = own_unit<channels>(p.units);
    if (!unit.valid) return;
    const Elements<rows> elements(p, unit);
    const int first = (unit.d * p.axis[1].size + unit.h) * p.axis[2].size + unit.w;
    const ELEMENT* const dy = p.dy + p.dy_strides.at(unit.image, unit.channel, 0, 0, 0);
    const long long* const indices = p.indices + p.index_strides.at(unit.image, unit.channel, 0, 0, 0);
    Sum sums[rows][channels];
    clear(sums);
    for (int d = elements.depth.first; d < elements.depth.stop; ++d) {
        for (int h = elements.together.first; h < elements.together.stop; ++h) {
            for (int w = elements.columns.first; w < elements.columns.stop; w += BATCH) {
                long long chosen[BATCH][channels];
                ELEMENT gradients[BATCH][channels];
#pragma unroll
                for (int j = 0; j < BATCH; ++j) {
                    if (w + j >= elements.columns.stop) break;
                    load_all(chosen[j], indices + p.index_strides.at(0, 0, d, h, w + j));
                    load_all(gradients[j], dy + p.dy_strides.at(0, 0, d, h, w + j));
                }
#pragma unroll
                for (int j = 0; j < BATCH; ++j) {
                    if (w + j >= elements.columns.stop) break;
#pragma unroll
                    for (int i = 0; i < channels; ++i) {
                        const int from = static_cast<int>(chosen[j][i]) - first;
                        const Sum gradient = widen(gradients[j][i]);
#pragma unroll
                        for (int r = 0; r < rows; ++r) {
                            if (from == r * p.axis[2].size) sums[r][i] += gradient;
                        }
                    }
                }
            }
        }
    }
    store<channels, rows>(p, elements, sums);
}

// What a window gives each of its elements, its divisor aside, and what an element makes of the sum.
struct Average {
    static constexpr bool needs_values = false;
    __device__ static Sum share(const GradientParameters&, Sum gradient, Sum) { return gradient; }
    __device__ static Sum result(const GradientParameters&, Sum sum, Sum) { return sum; }
};

// `any`: every exponent, not 1 and 2 alone.
template <bool any>
struct Norm {
    static constexpr bool needs_values = true;
    // The root has no slope at zero; it is taken as zero there.
    __device__ static Sum share(const GradientParameters& p, Sum gradient, Sum y) {
        if (y == 0) return 0;
        if (any) return gradient * pow(y, static_cast<Sum>(1 - p.norm));
        return p.norm == 2 ? gradient / y : gradient;
    }
    // What no window reads has no gradient, whatever its power would be.
    __device__ static Sum result(const GradientParameters& p, Sum sum, Sum x) {
        if (sum == 0 && x - x == 0) return 0;
        if (any) return sum * pow(x, static_cast<Sum>(p.norm - 1));
        return p.norm == 2 ? sum * x : sum;
    }
};

// The sums of the shares of the windows of one row that read a column.
template <class Operation, int channels, int rows>
__device__ inline void add_line(const GradientParameters& p, const Elements<rows>& elements, const ELEMENT* dy,
                                const ELEMENT* y, Sum (&line)[channels]) {
    const Span& columns = elements.columns;
    for (int w = columns.first; w < columns.stop; w += BATCH) {
        ELEMENT gradients[BATCH][channels], values[BATCH][channels];
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            if (w + j >= columns.stop) break;
            load_all(gradients[j], dy + p.dy_strides.axis[2] * (w + j));
            if (Operation::needs_values) load_all(values[j], y + p.y_strides.axis[2] * (w + j));
        }
#pragma unroll
        for (int j = 0; j < BATCH; ++j) {
            if (w + j >= columns.stop) break;
            if (!p.axis[2].reads(w + j, elements.unit.w)) continue;
            const Sum count = p.divisor != 0 ? Sum(1) : static_cast<Sum>(p.axis[2].counts(w + j, p.counts_padding));
#pragma unroll
            for (int i = 0; i < channels; ++i) {
                const Sum value = Operation::needs_values ? widen(values[j][i]) : Sum(0);
                line[i] += Operation::share(p, widen(gradients[j][i]), value) / count;
            }
        }
    }
}

template <class Operation, int channels, int rows>
__device__ void finish(const GradientParameters& p, const Elements<rows>& elements, Sum (&sums)[rows][channels]) {
    const Unit& unit = elements.unit;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        if (!elements.has(p, r)) continue;
        ELEMENT values[channels];
        load_all(values, p.x + p.x_strides.at(unit.image, unit.channel, unit.d, unit.h + r, unit.w));
#pragma unroll
        for (int i = 0; i < channels; ++i) sums[r][i] = Operation::result(p, sums[r][i], widen(values[i]));
    }
}

template <class Operation, int channels, int rows>
__device__ void spread(const GradientParameters& p) {
    const Unit unit = own_unit<channels>(p.units);
    if (!unit.valid) return;
    const Elements<rows> elements(p, unit);
    const ELEMENT* const dy = p.dy + p.dy_strides.at(unit.image, unit.channel, 0, 0, 0);
    const ELEMENT* const y = p.y + p.y_strides.at(unit.image, unit.channel, 0, 0, 0);
    Sum sums[rows][channels];
    clear(sums);
    for (int d = elements.depth.first; d < elements.depth.stop; ++d) {
        if (!p.axis[0].reads(d, unit.d)) continue;
        const Sum planes = static_cast<Sum>(p.axis[0].counts(d, p.counts_padding));
        for (int h = elements.together.first; h < elements.together.stop; ++h) {
            Sum line[channels];
#pragma unroll
            for (int i = 0; i < channels; ++i) line[i] = 0;
            add_line<Operation>(p, elements, dy + p.dy_strides.at(0, 0, d, h, 0), y + p.y_strides.at(0, 0, d, h, 0),
                                line);
            const Sum lines = static_cast<Sum>(p.axis[1].counts(h, p.counts_padding));
            const Sum divisor = p.divisor != 0 ? static_cast<Sum>(p.divisor) : planes * lines;
#pragma unroll
            for (int i = 0; i < channels; ++i) {
                line[i] /= divisor;
                if (Operation::needs_values) line[i] *= static_cast<Sum>(p.window);
            }
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                if (!elements.spans[r].has(h) || !p.axis[1].reads(h, unit.h + r)) continue;
#pragma unroll
                for (int i = 0; i < channels; ++i) sums[r][i] += line[i];
            }
        }
    }
    if (Operation::needs_values) finish<Operation>(p, elements, sums);
    store<channels, rows>(p, elements, sums);
}

// Sums take the registers of two blocks a multiprocessor, so that no architecture's compiler has to spill.
#if FAMILY == 0
KERNEL(average, GradientParameters, THREADS, 2) { spread<Average, 1, 4>(p); }
KERNEL(average_vectors, GradientParameters, THREADS, 2) { spread<Average, VECTOR, 2>(p); }
#elif FAMILY == 1
KERNEL(maximum, GradientParameters, THREADS) { route<1, 4>(p); }
KERNEL(maximum_vectors, GradientParameters, THREADS) { route<VECTOR, 2>(p); }
#else
KERNEL(usual_norm, GradientParameters, THREADS, 2) { spread<Norm<false>, 1, 4>(p); }
KERNEL(usual_norm_vectors, GradientParameters, THREADS, 2) { spread<Norm<false>, VECTOR, 2>(p); }
KERNEL(any_norm, GradientParameters, THREADS, 2) { spread<Norm<true>, 1, 4>(p); }
#endif
