// A thread of a kernel: its own guarded stack, and a switch that saves what a call must preserve.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  struct Host {};
  explicit Fiber(Host);  // the stack the program itself runs on
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Lets the next switch to this fiber begin `entry`, which must call entered() first and never
  // return.
  void prepare(void (*entry)());
  static void entered();
  // Leaves `from` and goes on where `to` was left.
  static void go(Fiber& from, Fiber& to);

 private:
  unsigned char* stack_ = nullptr;
  std::size_t size_ = 0;
  bool owned_ = false;
  void* saved_ = nullptr;      // where it was left
  void* sanitizer_ = nullptr;  // what the sanitizer of this build calls it
};

}  // namespace emulator
