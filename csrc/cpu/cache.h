// How large this CPU's caches are.
#pragma once

#include <cstdint>

namespace secateurs::cpu {

// Bytes of second-level cache that one core has to itself; a guess where the system does not say.
std::int64_t l2_bytes();

}  // namespace secateurs::cpu
