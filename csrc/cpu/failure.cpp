#include "cpu/failure.h"

namespace secateurs::cpu {

Failure::Failure() = default;
Failure::~Failure() = default;

void Failure::keep() noexcept {
  if (!__atomic_exchange_n(&failed_, true, __ATOMIC_RELAXED)) first_ = std::current_exception();
}

void Failure::rethrow() const {
  if (first_) std::rethrow_exception(first_);
}

}  // namespace secateurs::cpu
