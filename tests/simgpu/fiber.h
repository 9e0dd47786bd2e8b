// A CUDA C++ kernel on the CPU: the threads of a block are fibers of one OS thread, blocks run one after another.
//
// A fiber runs until it waits at __syncthreads or a shuffle, so every run is deterministic; races show as results that
// depend on the order in which the threads get their turn (forward, reverse, shuffled). What it can not show: races
// that no order of whole intervals between barriers exposes, memory order, timing.
//
// device.py appends the kernels' source to this file, and a table of the kernels to that (SIM_KERNELS).
#pragma once
#include <link.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace sim {

// ---- State of the launch that runs ---------------------------------------------------------------------------------

struct Index { unsigned x, y, z; };

constexpr int max_threads = 1024;
constexpr int warp_size = 32;
enum class State { ready, barrier, shuffle, done };
enum Order { forward, reverse, shuffled };

struct Fiber {
  ucontext_t start;    // where a fiber begins; after that, `registers`
  jmp_buf registers;   // _setjmp/_longjmp switch without a system call, swapcontext makes two
  char* stack = nullptr;
  bool started = false;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Fiber* next_free = nullptr;
};

struct Thread {
  Index index;
  int id;
  State state;
  int line;              // of the barrier or shuffle at which it waits
  unsigned shuffles;     // so far
  uint64_t offered[2];   // to the other lanes; two, as a quick lane may be one shuffle ahead of a slow one
  Fiber* fiber;
};

static Thread threads[max_threads];
static Thread* current;
static int thread_count, turn[max_threads], next_turn;  // turn: thread ids in the order of this round
static Index block_index, block_size, grid_size;
static void (*kernel)(void**);
static void** kernel_arguments;
static void* dynamic_shared_memory;
static char error[600];
static bool failed;

// ---- Switching -----------------------------------------------------------------------------------------------------

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_size = 512 << 10;  // instrumented frames are large
#else
constexpr size_t stack_size = 64 << 10;
#endif
constexpr int stacks_in_slab = 64;
static const unsigned long long canary = 0x5afe57acc0ffee11;

static Fiber hub;             // the scheduler, on the stack of the caller
static Fiber* running = &hub;
static Fiber* free_fibers;

// Tells AddressSanitizer which stack is in use; without it, it takes a fiber's frames for wild pointers.
static void announce_leave(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  static const void* hub_stack;
  static size_t hub_stack_size;
  if (from == &hub && !hub_stack) {
    pthread_attr_t attributes;
    void* lowest;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &lowest, &hub_stack_size);
    pthread_attr_destroy(&attributes);
    hub_stack = lowest;
  }
  if (to == &hub) __sanitizer_start_switch_fiber(&from->fake_stack, hub_stack, hub_stack_size);
  else __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, stack_size);
#else
  (void)from, (void)to;
#endif
}

static void announce_arrival(Fiber* here) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(here->fake_stack, nullptr, nullptr);
#else
  (void)here;
#endif
}

// Not inlined: a function that returns twice must have no locals of its caller in registers.
__attribute__((noinline)) static void switch_to(Fiber* to) {
  Fiber* from = running;
  announce_leave(from, to);
  running = to;
  if (!_setjmp(from->registers)) {
    if (to == &hub || to->started) _longjmp(to->registers, 1);
    to->started = true;
    setcontext(&to->start);
  }
  announce_arrival(running);
}

// A fiber takes one thread after another. One that waits keeps its fiber, and the next thread gets another; so a kernel
// without barriers costs one switch per block and not one per thread.
static void fiber_main() {
  announce_arrival(running);
  for (;;) {
    Fiber* self = running;
    while (next_turn < thread_count) {
      current = &threads[turn[next_turn++]];
      current->fiber = self;
      kernel(kernel_arguments);
      if (memcmp(self->stack, &canary, sizeof canary)) {
        fputs("simulated GPU: a thread has overflown its stack\n", stderr);
        abort();
      }
      current->state = State::done;
    }
    self->next_free = free_fibers;
    free_fibers = self;
    switch_to(&hub);
  }
}

static void begin_anew(Fiber* fiber) {
  fiber->started = false;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack;
  fiber->start.uc_stack.ss_size = stack_size;
  fiber->start.uc_link = nullptr;  // fiber_main never returns
  makecontext(&fiber->start, fiber_main, 0);
}

// Stacks come in slabs: a mapping, and a page out of bounds, for each would be more mappings than a process may have once
// a hundred modules are loaded. So an overflow is found by the word at the far end of a stack, when its thread has left.
static char* new_stack() {
  static char* slab;
  static int left = 0;
  if (!left) {
    left = stacks_in_slab;
    slab = (char*)mmap(nullptr, left * stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slab == MAP_FAILED) {
      fputs("simulated GPU: no memory for stacks\n", stderr);
      abort();
    }
  }
  char* stack = slab;
  slab += stack_size;
  left--;
  memcpy(stack, &canary, sizeof canary);
  return stack;
}

static Fiber* free_fiber() {
  Fiber* fiber = free_fibers;
  if (fiber) {
    free_fibers = fiber->next_free;
    return fiber;
  }
  fiber = new Fiber;
  fiber->stack = new_stack();
  begin_anew(fiber);
  return fiber;
}

// After an error the threads that still wait are given up; their fibers begin anew.
static void abandon_threads() {
  for (int i = 0; i < thread_count; i++) {
    Fiber* fiber = threads[i].fiber;
    if (!fiber || threads[i].state == State::done) continue;
    begin_anew(fiber);
    fiber->next_free = free_fibers;
    free_fibers = fiber;
  }
}

// ---- Errors --------------------------------------------------------------------------------------------------------

__attribute__((format(printf, 1, 2))) static void fail(const char* format, ...) {
  int used = snprintf(error, sizeof error, "block (%u, %u, %u): ", block_index.x, block_index.y, block_index.z);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error + used, sizeof error - used, format, arguments);
  va_end(arguments);
  failed = true;
  if (running != &hub) switch_to(&hub);  // for good
}

static void describe(const Thread& t, char* text, size_t size) {
  int used = snprintf(text, size, "thread (%u, %u, %u) ", t.index.x, t.index.y, t.index.z);
  if (t.state == State::done) snprintf(text + used, size - used, "has left the kernel");
  else snprintf(text + used, size - used, "waits at the %s of line %d",
                t.state == State::barrier ? "__syncthreads" : "shuffle", t.line);
}

// Names two threads that will never meet.
static void fail_divergent(const Thread& a, const Thread& b) {
  char first[120], second[120];
  describe(a, first, sizeof first);
  describe(b, second, sizeof second);
  bool barrier = a.state != State::shuffle && b.state != State::shuffle;
  fail("divergent %s: %s, %s", barrier ? "barrier" : "shuffle", first, second);
}

// ---- Waiting -------------------------------------------------------------------------------------------------------

static bool alike(const Thread& a, const Thread& b) { return a.state == b.state && a.line == b.line; }

// The lines, and not the addresses, of two waiting threads are compared: the compiler may duplicate a call.
static void wait(State state, int line) {
  current->state = state;
  current->line = line;
  switch_to(&hub);
}

static bool release(int begin, int end, State state) {
  for (int i = begin; i < end; i++)
    if (threads[i].state != state || threads[i].line != threads[begin].line) return false;
  for (int i = begin; i < end; i++) threads[i].state = State::ready;
  return true;
}

static bool release_warps() {
  bool any = false;
  for (int begin = 0; begin < thread_count; begin += warp_size) {
    int end = begin + warp_size < thread_count ? begin + warp_size : thread_count;
    any |= release(begin, end, State::shuffle);
  }
  return any;
}

static void report_divergence() {
  // Within a warp first: that is the cause, and the rest of the block its consequence.
  for (int i = 1; i < thread_count; i++)
    if (i % warp_size && !alike(threads[i], threads[i - 1])) return fail_divergent(threads[i - 1], threads[i]);
  for (int i = 1; i < thread_count; i++)
    if (!alike(threads[i], threads[0])) return fail_divergent(threads[0], threads[i]);
}

template <class T>
T exchange(int line, unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  if (mask != 0xffffffffu) fail("shuffle of line %d: only the full mask is simulated, got 0x%x", line, mask);
  unsigned slot = current->shuffles++ & 1;
  memcpy(&current->offered[slot], &value, sizeof value);
  wait(State::shuffle, line);
  int other = current->id / warp_size * warp_size + source;
  if (source < 0 || source >= warp_size || other >= thread_count)
    fail("shuffle of line %d: lane %d reads lane %d, which does not exist", line, current->id % warp_size, source);
  memcpy(&value, &threads[other].offered[slot], sizeof value);
  return value;
}

static inline int lane() { return current->id % warp_size; }

template <class T>
T shuffle_xor(int line, unsigned mask, T value, int lanes) { return exchange(line, mask, value, lane() ^ lanes); }

template <class T>
T shuffle_down(int line, unsigned mask, T value, unsigned lanes) {  // past the end a lane keeps its own
  int source = lane() + (int)lanes;
  return exchange(line, mask, value, source < warp_size ? source : lane());
}

template <class T>
T shuffle(int line, unsigned mask, T value, int source) { return exchange(line, mask, value, source & (warp_size - 1)); }

// ---- Shared memory -------------------------------------------------------------------------------------------------

// A static __shared__ array is thread_local, for that gathers all of them, those of templates and inline functions
// too, in one segment that can be found and poisoned before each block. (Variables of templates ignore a section
// attribute.) This library uses thread_local for nothing else but the anchor.
static thread_local char anchor;
static ptrdiff_t anchor_offset = -1;  // of the anchor in the segment
static size_t segment_size;

static int find_segment(dl_phdr_info* library, size_t, void*) {
  const uintptr_t here = (uintptr_t)&find_segment;
  bool mine = false;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const auto& part = library->dlpi_phdr[i];
    const uintptr_t begin = library->dlpi_addr + part.p_vaddr;
    mine |= part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz;
  }
  if (!mine) return 0;
  for (int i = 0; i < library->dlpi_phnum; i++)
    if (library->dlpi_phdr[i].p_type == PT_TLS) segment_size = library->dlpi_phdr[i].p_memsz;
  anchor_offset = &anchor - (char*)library->dlpi_tls_data;
  return 1;
}

// 0xff: NaN as float or double, -1 as int. What a block left behind must not reach the next one.
static void poison_shared_memory(size_t dynamic_bytes) {
  volatile char* touch = &anchor;  // the segment is allocated at the first access
  *touch = 0;
  if (anchor_offset < 0) dl_iterate_phdr(find_segment, nullptr);
  memset(&anchor - anchor_offset, 0xff, segment_size);
  if (dynamic_bytes) memset(dynamic_shared_memory, 0xff, dynamic_bytes);
}

// ---- Launch --------------------------------------------------------------------------------------------------------

static uint64_t random_state;

static uint64_t random_number() {  // splitmix64
  uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

static void arrange(int* items, int count, int order) {
  for (int i = 0; i < count; i++) items[i] = order == reverse ? count - 1 - i : i;
  if (order != shuffled) return;
  for (int i = count - 1; i > 0; i--) {
    int j = (int)(random_number() % (uint64_t)(i + 1)), kept = items[i];
    items[i] = items[j];
    items[j] = kept;
  }
}

static void begin_block(int order) {
  for (int i = 0; i < thread_count; i++) {
    const unsigned n = (unsigned)i;
    threads[i] = Thread{{n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y)},
                        i, State::ready, 0, 0, {0, 0}, nullptr};
  }
  arrange(turn, thread_count, order);
  next_turn = 0;
}

static void run_block(int order) {
  begin_block(order);
  while (next_turn < thread_count && !failed) switch_to(free_fiber());
  while (!failed) {
    bool all_done = true;
    for (int i = 0; i < thread_count; i++) all_done &= threads[i].state == State::done;
    if (all_done) return;
    if (!release_warps() && !release(0, thread_count, State::barrier)) return report_divergence();
    arrange(turn, thread_count, order);
    for (int i = 0; i < thread_count && !failed; i++) {
      current = &threads[turn[i]];
      if (current->state == State::ready) switch_to(current->fiber);
    }
  }
}

static bool launch(const unsigned* grid, const unsigned* block, size_t dynamic_bytes, int order, uint64_t seed) {
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  thread_count = (int)(block[0] * block[1] * block[2]);
  random_state = seed;
  failed = false;
  const int blocks = (int)(grid[0] * grid[1] * grid[2]);
  int* sequence = (int*)malloc(sizeof(int) * blocks);
  arrange(sequence, blocks, order);
  dynamic_shared_memory = malloc(dynamic_bytes ? dynamic_bytes : 1);  // of this very size, for AddressSanitizer
  for (int i = 0; i < blocks && !failed; i++) {
    const unsigned b = (unsigned)sequence[i];
    block_index = {b % grid[0], b / grid[0] % grid[1], b / (grid[0] * grid[1])};
    poison_shared_memory(dynamic_bytes);
    run_block(order);
  }
  if (failed) abandon_threads();
  free(dynamic_shared_memory);
  free(sequence);
  return !failed;
}

// ---- Signatures: the compiler itself says what a kernel takes -------------------------------------------------------

template <class T> struct Name;  // a type that is not here has no fixed size on every platform, or no place in a kernel
template <> struct Name<float> { static constexpr const char* text = "float32"; };
template <> struct Name<double> { static constexpr const char* text = "float64"; };
template <> struct Name<int> { static constexpr const char* text = "int32"; };
template <> struct Name<unsigned> { static constexpr const char* text = "uint32"; };
template <> struct Name<long long> { static constexpr const char* text = "int64"; };
template <> struct Name<unsigned long long> { static constexpr const char* text = "uint64"; };

template <class T> struct Describe { static int put(char* to, size_t n) { return snprintf(to, n, "%s,", Name<T>::text); } };
template <class T> struct Describe<T*> {
  static int put(char* to, size_t n) { return snprintf(to, n, "%s*,", Name<T>::text); }
};
template <class T> struct Describe<const T*> {
  static int put(char* to, size_t n) { return snprintf(to, n, "const %s*,", Name<T>::text); }
};

struct Kernel {
  const char* name;
  const char* (*types)();
  void (*call)(void**);
};

template <auto function> struct Entry;
template <class... A, void (*function)(A...)> struct Entry<function> {
  static const char* types() {
    static char text[1 + 24 * sizeof...(A)];
    [[maybe_unused]] int used = 0;
    ((used += Describe<A>::put(text + used, sizeof text - used)), ...);
    return text;
  }
  template <size_t... i> static void unpack(void** arguments, std::index_sequence<i...>) {
    function(*(A*)arguments[i]...);
  }
  static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>()); }
};

}  // namespace sim

// ---- What the kernels' source sees ---------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// used: or the compiler takes an array that nobody writes for the constant 0.
#define __shared__ static thread_local __attribute__((used))

#define threadIdx (sim::current->index)
#define blockIdx sim::block_index
#define blockDim sim::block_size
#define gridDim sim::grid_size
#define warpSize sim::warp_size

#define __syncthreads() sim::wait(sim::State::barrier, __LINE__)
#define __shfl_xor_sync(...) sim::shuffle_xor(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) sim::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_sync(...) sim::shuffle(__LINE__, __VA_ARGS__)

// On int only: atomics on floats would make sums depend on the order. A fiber is never interrupted, so plain code will do.
static inline int atomicAdd(int* p, int v) { int old = *p; *p = old + v; return old; }
static inline int atomicMin(int* p, int v) { int old = *p; *p = v < old ? v : old; return old; }
static inline int atomicMax(int* p, int v) { int old = *p; *p = v > old ? v : old; return old; }
template <class T> T atomicAdd(T*, T) = delete;
template <class T> T atomicMin(T*, T) = delete;
template <class T> T atomicMax(T*, T) = delete;
