// One head of one sequence, and the memory a thread solves it in.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr std::int32_t no_key = 0x7fffffff;
constexpr float log2_e = 1.44269504f;
constexpr float infinity = __builtin_inff();

template <class T>
struct Head {
  const Attention<T>& p;
  int64_t h;
  const T *q, *k, *v;
  const float* mask;
  T* out;
  const std::int32_t* position;  // [slots, and some more], the key of a slot; no_key: it has none
  int64_t slots;
  bool has_holes;  // slots without a key may stand between others

  Head(const Attention<T>& p, int64_t b, int64_t h, const std::int32_t* position, int64_t slots)
      : p(p),
        h(h),
        q(p.q + b * p.q_stride.batch + h * p.q_stride.head),
        k(p.k + b * p.k_stride.batch + p.kv_of[h] * p.k_stride.head),
        v(p.v + b * p.v_stride.batch + p.kv_of[h] * p.v_stride.head),
        mask(p.mask ? p.mask + b * p.mask_stride.batch + h * p.mask_stride.head : nullptr),
        out(p.out + (b * p.queries * p.heads + h) * p.dim),
        position(position),
        slots(slots),
        has_holes(p.pattern.indptr && p.key_mask) {}

  const T* query(int64_t i) const { return q + i * p.q_stride.row; }
  T* output(int64_t i) const { return out + i * p.heads * p.dim; }
  // Null where the slot has no key.
  const T* key(int64_t slot) const { return row(k, p.k_stride.row, slot); }
  const T* value(int64_t slot) const { return row(v, p.v_stride.row, slot); }

  // The last key that query i may see.
  int64_t last_key(int64_t i) const { return p.causal ? i + p.keys - p.queries : p.keys - 1; }

  // Whether each of the slots from `slot` on holds a key that query i may see.
  bool sees_all(int64_t i, int64_t slot, int64_t count) const {
    return !has_holes && position[slot + count - 1] <= last_key(i);
  }

 private:
  const T* row(const T* rows, int64_t stride, int64_t slot) const {
    return position[slot] == no_key ? nullptr : rows + position[slot] * stride;
  }
};

// Working memory of a thread, handed out piece by piece, aligned to cache lines.
struct Arena {
  float* next;
  float* take(int64_t count) {
    float* piece = next;
    next += ceil_div(count, 16) * 16;
    return piece;
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
