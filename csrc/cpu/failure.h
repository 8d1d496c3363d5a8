// Keeps an exception of a parallel region until the region is over: an exception that leaves the
// region ends the process.
#pragma once

#include <exception>

namespace secateurs::cpu {

// Its functions are not inline: an instruction set may use none of the standard library's.
class Failure {
 public:
  Failure();
  Failure(const Failure&) = delete;
  ~Failure();

  // Keeps the exception being handled, if it is the first. Any number of threads may call it.
  void keep() noexcept;

  // Rethrows the exception that was kept, if any. Call it after the region.
  void rethrow() const;

 private:
  bool failed_ = false;
  std::exception_ptr first_;
};

}  // namespace secateurs::cpu
