// The emulator: fibres, their scheduler, shared memory, and a loop that answers launches on standard input.
//
// A launch is a kernel's name, a grid, a parameter struct and buffers; the answer is the buffers afterwards. Every
// error ends the process with a message on standard error: AddressSanitizer's, or one of `fail`'s.

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulation.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr std::size_t stack_bytes = 256 << 10;
enum class Order : std::uint32_t { forward, reverse, shuffled };
enum class State { ready, at_barrier, meeting, done };

struct Kernel {
    std::size_t bytes;
    unsigned int threads;
    void (*run)(const void*);
};

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

struct Copy {
    void* to = nullptr;
    const void* from = nullptr;
    std::size_t bytes = 0, valid = 0;
};

#ifdef __x86_64__
using Context = void*;
extern "C" void emulation_switch(Context* save, Context* load);
// Callee-saved registers onto this stack, those of the other off its own.
asm(R"(
.text
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
void start(Context& context, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 2;
    *top = reinterpret_cast<void*>(entry);
    context = top - 6;
}
#else
using Context = ucontext_t;
void emulation_switch(Context* save, Context* load) { swapcontext(save, load); }
void start(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    makecontext(&context, entry, 0);
}
#endif

struct Fibre {
    Context context;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    State state = State::ready;
    Site site{};
    uint3 index{};
    unsigned int mask = 0;
    std::shared_ptr<Meeting> meeting;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> copies;
};

struct Block {
    const Kernel* kernel = nullptr;
    const void* parameters = nullptr;
    std::size_t dynamic_bytes = 0;
    Order order = Order::forward;
    std::mt19937 random;
    std::vector<Fibre> fibres;
    unsigned int current = 0;
    Context scheduler;
    void* scheduler_fake = nullptr;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_bytes = 0;
    std::map<const void*, void*> shared;
    int sum = 0, total = 0;
} block;

Fibre& here() { return block.fibres[block.current]; }

void copy_now(const Copy& copy) {
    if (!copy.to) return;
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

void leave(State state) {
    Fibre& fibre = here();
    fibre.state = state;
    __sanitizer_start_switch_fiber(state == State::done ? nullptr : &fibre.fake_stack, block.scheduler_stack,
                                   block.scheduler_bytes);
    emulation_switch(&fibre.context, &block.scheduler);
    __sanitizer_finish_switch_fiber(here().fake_stack, nullptr, nullptr);
}

void enter() {
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_bytes);
    block.kernel->run(block.parameters);
    Fibre& fibre = here();
    for (const auto& group : fibre.groups) fibre.copies.insert(fibre.copies.end(), group.begin(), group.end());
    if (!fibre.copies.empty()) fail("a thread ends before its copies have arrived");
    fibre.groups.clear();
    leave(State::done);
}

void resume(unsigned int thread) {
    block.current = thread;
    Fibre& fibre = here();
    threadIdx = fibre.index;
    __sanitizer_start_switch_fiber(&block.scheduler_fake, fibre.stack, stack_bytes);
    emulation_switch(&block.scheduler, &fibre.context);
    __sanitizer_finish_switch_fiber(block.scheduler_fake, nullptr, nullptr);
}

bool same(const Site& a, const Site& b) { return a.line == b.line && !std::strcmp(a.file, b.file) && !std::strcmp(a.what, b.what); }

[[noreturn]] void stuck() {
    std::string report = "a rendezvous that not all its threads reach:";
    std::map<std::string, std::pair<unsigned int, unsigned int>> places;
    for (unsigned int i = 0; i < block.fibres.size(); ++i) {
        const Fibre& fibre = block.fibres[i];
        const std::string place = fibre.state == State::done ? "at the kernel's end"
                                                             : std::string("in ") + fibre.site.what + " at " +
                                                                   fibre.site.file + ":" + std::to_string(fibre.site.line);
        auto& [first, count] = places.emplace(place, std::make_pair(i, 0u)).first->second;
        ++count;
    }
    for (const auto& [place, where] : places) {
        report += "\n  " + std::to_string(where.second) + " threads, thread " + std::to_string(where.first) +
                  " among them, are " + place;
    }
    fail("%s", report.c_str());
}

// Whether the barrier opened: every thread is at it.
bool open_barrier() {
    for (const Fibre& fibre : block.fibres) {
        if (fibre.state != State::at_barrier || !same(fibre.site, block.fibres[0].site)) return false;
    }
    for (Fibre& fibre : block.fibres) fibre.state = State::ready;
    block.total = block.sum;
    block.sum = 0;
    return true;
}

// Whether any of some threads could go on.
bool resume_ready(const std::vector<unsigned int>& turns, unsigned int first, unsigned int last) {
    bool any = false;
    for (unsigned int i = first; i < last; ++i) {
        if (block.fibres[turns[i]].state != State::ready) continue;
        resume(turns[i]);
        any = true;
    }
    return any;
}

void run_block() {
    const unsigned int threads = static_cast<unsigned int>(block.fibres.size());
    for (unsigned int i = 0; i < threads; ++i) {
        Fibre& fibre = block.fibres[i];
        fibre.state = State::ready;
        fibre.fake_stack = nullptr;
        start(fibre.context, fibre.stack, enter);
    }
    std::vector<unsigned int> turns(threads);
    for (unsigned int i = 0; i < threads; ++i) turns[i] = block.order == Order::reverse ? threads - 1 - i : i;
    for (unsigned int done = 0; done < threads;) {
        if (block.order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), block.random);
        bool progress = false;
        done = 0;
        for (unsigned int first = 0; first < threads; first += 32) {
            const unsigned int last = std::min(first + 32, threads);
            while (resume_ready(turns, first, last)) {
                progress = true;
                // In reverse order a warp runs as far ahead of the others as it can, else all keep pace.
                if (block.order != Order::reverse) break;
            }
        }
        for (const Fibre& fibre : block.fibres) done += fibre.state == State::done;
        if (!progress && !open_barrier()) stuck();
    }
    for (const auto& [key, memory] : block.shared) std::free(memory);
    block.shared.clear();
}

// Blocks in the order of threads: none may rely on another.
void run_grid() {
    const std::size_t blocks = static_cast<std::size_t>(gridDim.x) * gridDim.y * gridDim.z;
    std::vector<std::size_t> turns(blocks);
    std::iota(turns.begin(), turns.end(), 0);
    if (block.order == Order::reverse) std::reverse(turns.begin(), turns.end());
    if (block.order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), block.random);
    for (const std::size_t turn : turns) {
        blockIdx.x = static_cast<unsigned int>(turn % gridDim.x);
        blockIdx.y = static_cast<unsigned int>(turn / gridDim.x % gridDim.y);
        blockIdx.z = static_cast<unsigned int>(turn / gridDim.x / gridDim.y);
        run_block();
    }
}

void read(void* to, std::size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(0);
}

template <class T>
T read() {
    T value;
    read(&value, sizeof value);
    return value;
}

// What lies in memory that nobody wrote: NaN, or a large number, since NaN may be what a kernel computes again.
void* filled(std::size_t bytes, bool finite = false) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes ? bytes : 1)) fail("no memory");
    std::memset(memory, finite ? 0x4b : 0xff, bytes);
    return memory;
}

// A piece of memory that the host has, too.
struct Run {
    std::uint64_t first, bytes;
};

// The memory of some arrays. If their elements lie far apart, only the pages around them are there.
struct Buffer {
    char* memory;
    std::size_t bytes, shift;
    std::vector<Run> runs;

    Buffer() : bytes(read<std::uint64_t>()), shift(read<std::uint64_t>()), runs(read<std::uint32_t>()) {
        for (Run& run : runs) run = read<Run>();
        memory = is_whole() ? static_cast<char*>(filled(shift + bytes)) : mapped();
        for (const Run& run : runs) read(start() + run.first, run.bytes);
        if (is_whole()) __asan_poison_memory_region(memory, shift);
    }
    Buffer(const Buffer&) = delete;

    ~Buffer() {
        if (is_whole()) {
            __asan_unpoison_memory_region(memory, shift);
            std::free(memory);
        } else {
            munmap(memory, shift + bytes);
        }
    }

    char* start() const { return memory + shift; }

    void write() const {
        for (const Run& run : runs) std::fwrite(start() + run.first, 1, run.bytes, stdout);
    }

  private:
    bool is_whole() const { return runs.size() == 1 && runs[0].bytes == bytes; }

    char* mapped() const {
        void* all = mmap(nullptr, shift + bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED) fail("no room for %zu bytes", shift + bytes);
        const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
        for (const Run& run : runs) {
            const std::uint64_t first = (shift + run.first) / page * page;
            mprotect(static_cast<char*>(all) + first, shift + run.first + run.bytes - first, PROT_READ | PROT_WRITE);
        }
        return static_cast<char*>(all);
    }
};

void prepare_fibres(const uint3& size) {
    const unsigned int threads = size.x * size.y * size.z;
    while (block.fibres.size() > threads) {
        // What is mapped there next is no stack.
        __asan_unpoison_memory_region(block.fibres.back().stack, stack_bytes);
        munmap(block.fibres.back().stack, stack_bytes);
        block.fibres.pop_back();
    }
    while (block.fibres.size() < threads) {
        block.fibres.emplace_back();
        void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fail("no memory for stacks");
        block.fibres.back().stack = static_cast<char*>(stack);
    }
    for (unsigned int i = 0; i < threads; ++i) {
        block.fibres[i].index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    }
}

void answer() {
    std::string name(read<std::uint32_t>(), ' ');
    read(name.data(), name.size());
    gridDim = read<uint3>();
    blockDim = read<uint3>();
    block.dynamic_bytes = read<std::uint32_t>();
    block.order = read<Order>();
    block.random.seed(read<std::uint32_t>());
    std::vector<unsigned char> parameters(read<std::uint32_t>());
    read(parameters.data(), parameters.size());
    const auto found = kernels().find(name);
    if (found == kernels().end()) fail("no kernel %s", name.c_str());
    block.kernel = &found->second;
    if (block.kernel->bytes != parameters.size()) {
        fail("%s takes %zu bytes of parameters, was given %zu", name.c_str(), block.kernel->bytes, parameters.size());
    }
    if (blockDim.x * blockDim.y * blockDim.z > block.kernel->threads) {
        fail("%s is for blocks of %u threads at most", name.c_str(), block.kernel->threads);
    }
    std::deque<Buffer> buffers;
    for (auto count = read<std::uint32_t>(); count; --count) buffers.emplace_back();
    for (auto pointers = read<std::uint32_t>(); pointers; --pointers) {
        const auto offset = read<std::uint32_t>(), index = read<std::uint32_t>();
        const char* address = buffers[index].start() + read<std::uint64_t>();
        std::memcpy(&parameters[offset], &address, sizeof address);
    }
    block.parameters = parameters.data();
    prepare_fibres(blockDim);
    run_grid();
    for (const Buffer& buffer : buffers) buffer.write();
    std::fputc('.', stdout);
    std::fflush(stdout);
}

}  // namespace

Registration::Registration(const char* name, std::size_t bytes, unsigned int threads, void (*run)(const void*)) {
    kernels()[name] = {bytes, threads, run};
}

void fail(const char* format, ...) {
    std::fprintf(stderr, "emulation: block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::fflush(stderr);
    _exit(3);
}

void barrier(Site site) {
    here().site = site;
    leave(State::at_barrier);
}

int barrier_sum(Site site, int value) {
    block.sum += value;
    barrier(site);
    return block.total;
}

int lane() { return static_cast<int>(block.current % 32); }

const Meeting& meet(unsigned int mask, const void* data, std::size_t bytes, Site site) {
    Fibre& fibre = here();
    const unsigned int first = block.current / 32 * 32, own = block.current - first;
    if (!(mask >> own & 1)) fail("%s at %s:%d: the mask leaves out the thread itself", site.what, site.file, site.line);
    fibre.site = site;
    fibre.mask = mask;
    std::shared_ptr<Meeting> meeting;
    unsigned int arrived = 1u << own;
    for (unsigned int other = 0; other < 32 && first + other < block.fibres.size(); ++other) {
        const Fibre& lane = block.fibres[first + other];
        if (other == own || !(mask >> other & 1) || lane.state != State::meeting) continue;
        if (lane.mask != mask || !same(lane.site, site)) continue;
        arrived |= 1u << other;
        meeting = lane.meeting;
    }
    if (!meeting) {
        meeting = std::make_shared<Meeting>();
        meeting->mask = mask;
    }
    std::memcpy(meeting->brought[own], data, bytes);
    fibre.meeting = meeting;
    if (arrived != mask) {
        leave(State::meeting);
        return *fibre.meeting;
    }
    for (unsigned int other = 0; other < 32; ++other) {
        if (other != own && mask >> other & 1) block.fibres[first + other].state = State::ready;
    }
    return *meeting;
}

void* shared(const void* key, std::size_t bytes) {
    void*& memory = block.shared[key];
    if (!memory) memory = filled(bytes, block.order == Order::reverse);
    return memory;
}

void* dynamic_shared() { return shared(&block, block.dynamic_bytes); }

// What is copied asynchronously may arrive at once or only when it is waited for: each order takes one of the two.
void copy_later(void* to, const void* from, std::size_t bytes, std::size_t valid) {
    check_aligned(static_cast<char*>(to), bytes);
    if (valid) check_aligned(static_cast<const char*>(from), bytes);
    const Copy copy{to, from, bytes, valid};
    const bool now = block.order == Order::shuffled;
    if (now) copy_now(copy);
    here().copies.push_back(now ? Copy{} : copy);
}

void commit_copies() {
    Fibre& fibre = here();
    fibre.groups.push_back(std::move(fibre.copies));
    fibre.copies.clear();
}

void wait_for_copies(unsigned int pending) {
    Fibre& fibre = here();
    while (fibre.groups.size() > pending) {
        for (const Copy& copy : fibre.groups.front()) copy_now(copy);
        fibre.groups.erase(fibre.groups.begin());
    }
}

}  // namespace emulation

int main() {
    for (;;) emulation::answer();
}
