// Whole numbers: how work is cut into parts, and how much of it is worth a thread.
#pragma once

#include <cstdint>

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

using std::int64_t;

constexpr int64_t serial_limit = 400'000;  // multiply-adds not worth waking threads for
constexpr int64_t items_per_thread = 4;    // enough for uneven items to even out

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t clamp(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }

// Where part i begins when n things are cut into parts as equal as can be.
inline int64_t cut(int64_t n, int64_t parts, int64_t i) { return n * i / parts; }

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
