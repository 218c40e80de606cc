// Pools, forward: the maximum, mean or norm of every window.
//
// Two ways. In `pool` a thread has the windows of a few neighbouring rows and goes through the rows of elements that
// any of them reads: what it takes from such a row goes to all windows that share it. Threads side by side have
// neighbouring columns, or channels where these are neighbours in memory, 16 bytes of them. In `reduce` several
// threads share a window: for few large windows, up to whole maps.
//
// Macros: ELEMENT; FAMILY (0: the kernels of means, 1: of maxima, 2: of norms).

#include "windows.cuh"

using namespace fastconv;

struct PoolParameters {
    const ELEMENT* x;
    ELEMENT* y;
    long long* indices;

    Units units;
    MapStrides x_strides, y_strides, index_strides;
    WindowAxis axis[3];
    double divisor;  // of every window; 0: each has its own
    double norm;
    double window;  // elements of a window
    int counts_padding;
    int part_bits;  // reduce: threads that share a window, as a power of 2
    int parts_fastest;
};

using Sum = Accumulator<ELEMENT>;

constexpr int VECTOR = vector_count<ELEMENT>;
// Loads that are on their way together.
constexpr int BATCH = 4;

__device__ inline Sum lowest() { return static_cast<Sum>(__uint_as_float(0xff800000u)); }

__device__ inline float larger(float a, float b) {
#ifdef FASTCONV_EMULATED
    return b > a || b != b ? b : a;
#else
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#endif
}

__device__ inline double larger(double a, double b) { return b > a || b != b ? b : a; }

// An operation gathers elements in a state. `join` adds what comes after it in the window, `merge` what lies anywhere.
struct Maximum {
    static constexpr bool divides = false, indexed = false;
    struct State {
        Sum value;
    };
    __device__ static State none() { return {lowest()}; }
    __device__ static void add(const PoolParameters&, State& state, Sum value, int) {
        state.value = larger(state.value, value);
    }
    __device__ static void join(State& state, const State& other) { state.value = larger(state.value, other.value); }
    __device__ static void merge(State& state, const State& other) { join(state, other); }
    __device__ static Sum result(const PoolParameters&, const State& state, Sum) { return state.value; }
};

// Of equal elements the first is chosen, of NaNs the last, and none (-1) of padding.
struct IndexedMaximum {
    static constexpr bool divides = false, indexed = true;
    struct State {
        Sum value;
        int index;
    };
    __device__ static State none() { return {lowest(), -1}; }
    __device__ static void add(const PoolParameters&, State& state, Sum value, int index) {
        if (value > state.value || value != value || state.index < 0) state = {value, index};
    }
    __device__ static void join(State& state, const State& other) {
        const bool wins = other.value > state.value || other.value != other.value || state.index < 0;
        if (wins && other.index >= 0) state = other;
    }
    __device__ static void merge(State& state, const State& other) {
        if (other.index < 0) return;
        const bool nan = state.value != state.value, other_nan = other.value != other.value;
        const bool earlier = other.index < state.index;
        const bool wins = other_nan ? !nan || !earlier
                                    : !nan && (other.value > state.value || (other.value == state.value && earlier));
        if (wins || state.index < 0) state = other;
    }
    __device__ static Sum result(const PoolParameters&, const State& state, Sum) { return state.value; }
};

struct Average {
    static constexpr bool divides = true, indexed = false;
    struct State {
        Sum sum;
    };
    __device__ static State none() { return {0}; }
    __device__ static void add(const PoolParameters&, State& state, Sum value, int) { state.sum += value; }
    __device__ static void join(State& state, const State& other) { state.sum += other.sum; }
    __device__ static void merge(State& state, const State& other) { join(state, other); }
    __device__ static Sum result(const PoolParameters&, const State& state, Sum divisor) { return state.sum / divisor; }
};

// `any`: every exponent, not 1 and 2 alone.
template <bool any>
struct Norm : Average {
    __device__ static void add(const PoolParameters& p, State& state, Sum value, int) {
        if (any) {
            state.sum += pow(value, static_cast<Sum>(p.norm));
        } else {
            state.sum += p.norm == 2 ? value * value : value;
        }
    }
    // A window that overhangs the map is scaled up to a whole one.
    __device__ static Sum result(const PoolParameters& p, const State& state, Sum divisor) {
        const Sum whole = state.sum * (static_cast<Sum>(p.window) / divisor);
        if (any) return pow(whole, static_cast<Sum>(1 / p.norm));
        return p.norm == 2 ? sqrt(whole) : whole;
    }
};

__device__ inline Sum divisor(const PoolParameters& p, int d, int h, int w) {
    if (p.divisor != 0) return static_cast<Sum>(p.divisor);
    const auto counts = [&p](int axis, int at) { return static_cast<Sum>(p.axis[axis].counts(at, p.counts_padding)); };
    return counts(0, d) * counts(1, h) * counts(2, w);
}

template <class Operation, int channels>
__device__ void store(const PoolParameters& p, const Unit& unit, int h,
                      const typename Operation::State (&states)[channels]) {
    const Sum by = Operation::divides ? divisor(p, unit.d, h, unit.w) : Sum(1);
    ELEMENT results[channels];
#pragma unroll
    for (int i = 0; i < channels; ++i) results[i] = narrow<ELEMENT>(Operation::result(p, states[i], by));
    store_all(p.y + p.y_strides.at(unit.image, unit.channel, unit.d, h, unit.w), results);
    if constexpr (Operation::indexed) {
        long long indices[channels];
#pragma unroll
        for (int i = 0; i < channels; ++i) indices[i] = states[i].index;
        store_all(p.indices + p.index_strides.at(unit.image, unit.channel, unit.d, h, unit.w), indices);
    }
}

template <class Operation, int channels, int rows>
__device__ void pool(const PoolParameters& p) {
    using State = typename Operation::State;
    const Unit unit = own_unit<channels>(p.units);
    if (!unit.valid) return;
    const Span depth = p.axis[0].elements(unit.d), columns = p.axis[2].elements(unit.w);
    Span spans[rows];
    Span together = {0, 0, 1};
    State states[rows][channels];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        spans[r] = {0, 0, 1};
        if (r < p.units.rows && unit.h + r < p.axis[1].out) {
            spans[r] = p.axis[1].elements(unit.h + r);
            if (r == 0) together = spans[0];
            together.stop = max(together.stop, spans[r].stop);
        }
#pragma unroll
        for (int i = 0; i < channels; ++i) states[r][i] = Operation::none();
    }

    const ELEMENT* const x = p.x + p.x_strides.at(unit.image, unit.channel, 0, 0, 0);
    for (int d = depth.first; d < depth.stop; d += depth.step) {
        // Dilated rows are not shared: the host gives such threads one row.
        for (int h = together.first; h < together.stop; h += together.step) {
            bool read = false;
#pragma unroll
            for (int r = 0; r < rows; ++r) read = read || spans[r].has(h);
            if (!read) continue;
            State line[channels];
#pragma unroll
            for (int i = 0; i < channels; ++i) line[i] = Operation::none();
            const int first_index = (d * p.axis[1].size + h) * p.axis[2].size;
            const ELEMENT* const row = x + p.x_strides.axis[0] * d + p.x_strides.axis[1] * h;
            for (int w = columns.first; w < columns.stop; w += BATCH * columns.step) {
                ELEMENT loaded[BATCH][channels];
#pragma unroll
                for (int j = 0; j < BATCH; ++j) {
                    const int at = w + j * columns.step;
                    if (at < columns.stop) load_all(loaded[j], row + p.x_strides.axis[2] * at);
                }
#pragma unroll
                for (int j = 0; j < BATCH; ++j) {
                    const int at = w + j * columns.step;
                    if (at >= columns.stop) break;
#pragma unroll
                    for (int i = 0; i < channels; ++i) {
                        Operation::add(p, line[i], widen(loaded[j][i]), first_index + at);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                if (!spans[r].has(h)) continue;
#pragma unroll
                for (int i = 0; i < channels; ++i) Operation::join(states[r][i], line[i]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        if (r < p.units.rows && unit.h + r < p.axis[1].out) store<Operation>(p, unit, unit.h + r, states[r]);
    }
}

// Where the taps of one window are, numbered row by row as if nothing of it lay in padding.
struct Window {
    const PoolParameters& p;
    Span depth, rows, columns;
    int d, h, w;  // of its first tap

    __device__ Window(const PoolParameters& p_, const Unit& unit)
        : p(p_),
          depth(p.axis[0].elements(unit.d)),
          rows(p.axis[1].elements(unit.h)),
          columns(p.axis[2].elements(unit.w)),
          d(start(p.axis[0], depth, unit.d)),
          h(start(p.axis[1], rows, unit.h)),
          w(start(p.axis[2], columns, unit.w)) {}

    __device__ static int start(const WindowAxis& axis, const Span& span, int at) {
        return axis.uneven ? span.first : at * axis.stride - axis.before;
    }

    __device__ unsigned int taps() const {
        return static_cast<unsigned int>(p.axis[0].kernel) * p.axis[1].kernel * p.axis[2].kernel;
    }

    // The element's index in its map, or -1; its offset.
    __device__ int element(unsigned int tap, long long& offset) const {
        if (tap >= taps()) return -1;
        const auto [line, k] = p.axis[2].by_kernel.divmod(tap);
        const auto [plane, j] = p.axis[1].by_kernel.divmod(line);
        const int a = d + static_cast<int>(plane) * depth.step, b = h + static_cast<int>(j) * rows.step;
        const int c = w + static_cast<int>(k) * columns.step;
        if (!depth.has(a) || !rows.has(b) || !columns.has(c)) return -1;
        offset = p.x_strides.axis[0] * a + p.x_strides.axis[1] * b + p.x_strides.axis[2] * c;
        return (a * p.axis[1].size + b) * p.axis[2].size + c;
    }
};

template <class Operation, int channels>
__device__ void reduce(const PoolParameters& p) {
    using State = typename Operation::State;
    SHARED_ARRAY(State, shared, THREADS * channels);
    const int thread = static_cast<int>(threadIdx.x);
    const int parts = 1 << p.part_bits, units = THREADS >> p.part_bits;
    const int part = p.parts_fastest ? thread & (parts - 1) : thread / units;
    const int own = p.parts_fastest ? thread >> p.part_bits : thread & (units - 1);
    const Unit unit = unit_at<channels>(p.units, blockIdx.x * units + own);
    State states[channels];
#pragma unroll
    for (int i = 0; i < channels; ++i) states[i] = Operation::none();

    if (unit.valid) {
        const Window window(p, unit);
        const ELEMENT* const x = p.x + p.x_strides.at(unit.image, unit.channel, 0, 0, 0);
        const unsigned int taps = window.taps();
        for (unsigned int tap = part; tap < taps; tap += BATCH * parts) {
            ELEMENT loaded[BATCH][channels];
            int index[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; ++j) {
                long long offset = 0;
                index[j] = window.element(tap + j * parts, offset);
                if (index[j] >= 0) load_all(loaded[j], x + offset);
            }
#pragma unroll
            for (int j = 0; j < BATCH; ++j) {
                if (index[j] < 0) continue;
#pragma unroll
                for (int i = 0; i < channels; ++i) Operation::add(p, states[i], widen(loaded[j][i]), index[j]);
            }
        }
    }

    // Halves are put together, always in the same order.
    const int step = p.parts_fastest ? 1 : units;
#pragma unroll
    for (int i = 0; i < channels; ++i) shared[i * THREADS + thread] = states[i];
    for (int half = parts / 2; half > 0; half /= 2) {
        __syncthreads();
        if (part < half) {
#pragma unroll
            for (int i = 0; i < channels; ++i) {
                Operation::merge(states[i], shared[i * THREADS + thread + half * step]);
                shared[i * THREADS + thread] = states[i];
            }
        }
    }
    if (part == 0 && unit.valid) store<Operation>(p, unit, unit.h, states);
}

// A power is too long to be there for every channel of a vector.
#define POOL(name, Operation)                                              \
    KERNEL(name, PoolParameters, THREADS, 2) { pool<Operation, 1, 4>(p); } \
    KERNEL(name##_reduced, PoolParameters, THREADS) { reduce<Operation, 1>(p); }
#define POOL_VECTORS(name, Operation)                                                  \
    POOL(name, Operation)                                                              \
    KERNEL(name##_vectors, PoolParameters, THREADS) { pool<Operation, VECTOR, 2>(p); } \
    KERNEL(name##_vectors_reduced, PoolParameters, THREADS) { reduce<Operation, VECTOR>(p); }

#if FAMILY == 0
POOL_VECTORS(average, Average)
#elif FAMILY == 1
POOL_VECTORS(maximum, Maximum)
POOL_VECTORS(indexed_maximum, IndexedMaximum)
#else
POOL_VECTORS(usual_norm, Norm<false>)
POOL(any_norm, Norm<true>)
#endif
