#include "emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
  #include <sanitizer/asan_interface.h>
#endif
#ifdef EMULATOR_TSAN
  #include <sanitizer/tsan_interface.h>
#endif
#ifndef __x86_64__
  #include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr std::size_t STACK = 256 << 10;

std::size_t page() { return sysconf(_SC_PAGESIZE); }

}  // namespace

#ifdef __x86_64__

// Pushes what a callee must preserve, swaps stacks and pops the other's.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

static void* context_of(unsigned char* stack, std::size_t size, void (*entry)(), void*) {
  // What the switch pops: six registers and a return address, which leaves the stack as a call does.
  void** top = reinterpret_cast<void**>(stack + size) - 2;
  for (int i = 0; i < 8; ++i) top[1 - i] = nullptr;
  top[0] = reinterpret_cast<void*>(entry);
  return top - 6;
}

static void jump(void** save, void* load) { emulator_switch(save, load); }

#else

static void* context_of(unsigned char* stack, std::size_t size, void (*entry)(), void* before) {
  auto* context = static_cast<ucontext_t*>(before ? before : new ucontext_t);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = size;
  makecontext(context, entry, 0);
  return context;
}

static void jump(void** save, void* load) {
  if (!*save) *save = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}

#endif

Fiber::Fiber(Host) {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &size_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<unsigned char*>(bottom);
#ifdef EMULATOR_TSAN
  sanitizer_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber() : size_(STACK), owned_(true) {
  void* memory = mmap(nullptr, page() + size_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page(), PROT_NONE);
  stack_ = static_cast<unsigned char*>(memory) + page();
#ifdef EMULATOR_TSAN
  sanitizer_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!owned_) return;
#ifdef EMULATOR_TSAN
  __tsan_destroy_fiber(sanitizer_);
#endif
  munmap(stack_ - page(), page() + size_);
}

void Fiber::prepare(void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(stack_, size_);
  sanitizer_ = nullptr;
#endif
  saved_ = context_of(stack_, size_, entry, saved_);
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::go(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.sanitizer_, to.stack_, to.size_);
#endif
#ifdef EMULATOR_TSAN
  __tsan_switch_to_fiber(to.sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
  jump(&from.saved_, to.saved_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.sanitizer_, nullptr, nullptr);
#endif
}

}  // namespace emulator
