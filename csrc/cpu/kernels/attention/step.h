// One step of attention: some queries against up to 128 keys. Scores become weights, row by row.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/math.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// The sums of a tile of queries.
struct TileSums {
  int64_t query;
  int count;
  bf16* q;     // [queries][dims, to a multiple of 32]
  float* o;    // [queries][dims, to a multiple of 16], not yet divided by sum
  float* top;  // [queries], the largest score so far
  float* sum;  // [queries][16], of 2^(score - top), to be added up
};

// A group of 32 slots. The second half may be unused.
struct KeyGroup {
  int64_t slot;
  const bool* allowed[2];  // of either half: [queries][keys], rows a block apart, or null
  bool full;
};

struct AttentionStep {
  static constexpr int most_groups = 4, keys = 32 * most_groups;

  TileSums tile{};
  KeyGroup group[most_groups] = {};
  int groups = 0;
  float* scores = nullptr;  // [queries][keys]; then weights, in the first half of each row
  float* fade = nullptr;    // [queries], what the step leaves of earlier sums
  bool fades = false;       // whether any of those is less than 1
  bool last = false;        // of its queries
};

// Puts the result in all lanes.
inline F largest(F x) {
  x = max(x, {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)});
  x = max(x, {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)});
  x = max(x, {_mm512_permute_ps(x.v, 0x4e)});
  return max(x, {_mm512_permute_ps(x.v, 0xb1)});
}

class StepWeights {
 public:
  StepWeights(const Head<bf16>& head, const AttentionStep& step)
      : p(head.p), head(head), step(step), cut(head.mask) {
    for (int g = 0; g < step.groups; ++g) {
      const KeyGroup& group = step.group[g];
      cut = cut || !group.full || group.allowed[0] || group.allowed[1] ||
            !head.sees_all(step.tile.query, group.slot, 32);
    }
  }

  // Turns scores into probabilities relative to the largest so far, and calls next(row) after each
  // row. Returns whether any earlier sum has to be scaled down.
  template <class Next>
  bool weigh(const Next& next) const {
    return step.groups == 1   ? weigh_rows<2>(next)
           : step.groups == 2 ? weigh_rows<4>(next)
           : step.groups == 3 ? weigh_rows<6>(next)
                              : weigh_rows<8>(next);
  }

 private:
  const Attention<bf16>& p;
  const Head<bf16>& head;
  const AttentionStep& step;
  bool cut;  // a query may not see all of the keys, or there is a mask to add

  template <int NS, class Next>
  bool weigh_rows(const Next& next) const {
    const TileSums& tile = step.tile;
    // A negative scale has changed the sign of q.
    const float scale = (p.scale < 0 ? -p.scale : p.scale) * log2_e;
    const F factor = set1(cut ? 1 : scale);
    bool fades = false;
    for (int i = 0; i < tile.count; ++i) {
      if (cut) mask_row(i, scale);
      float* row = step.scores + i * AttentionStep::keys;
      F s[NS];
#pragma GCC unroll 8
      for (int j = 0; j < NS; ++j) s[j] = load(row + 16 * j);
      F most = s[0];
#pragma GCC unroll 8
      for (int j = 1; j < NS; ++j) most = max(s[j], most);
      const F before = set1(tile.top[i]), now = max(largest(most) * factor, before);
      // Where all is hidden so far, any finite number will do.
      const F shift = select(now < set1(-__FLT_MAX__), zero(), zero() - now);
      const F left = exp2_short(before + shift);
      F total = zero();
#pragma GCC unroll 8
      for (int j = 0; j < NS; ++j) {
        s[j] = exp2_short(fma(s[j], factor, shift));
        total = total + s[j];
      }
      auto* weights = reinterpret_cast<bf16*>(row);
#pragma GCC unroll 4
      for (int j = 0; j < NS; j += 2) {
        const auto pair = (__m512i)_mm512_cvtne2ps_pbh(s[j + 1].v, s[j].v);
        _mm512_storeu_si512(weights + 16 * j, pair);
      }
      store(tile.sum + 16 * i, fma(load(tile.sum + 16 * i), left, total));
      store(tile.top + i, now, 1);
      store(step.fade + i, left, 1);
      fades |= (left < set1(1)) != 0;
      next(i);
    }
    return fades;
  }

  // Scales the scores of a query, adds its mask, and hides what it may not see.
  void mask_row(int i, float factor) const {
    const int64_t query = step.tile.query + i;
    const auto limit =
        _mm512_set1_epi32(static_cast<int>(clamp(head.last_key(query), -1, no_key - 1)));
    const float* mask = head.mask ? head.mask + query * p.mask_stride.row : nullptr;
    for (int g = 0; g < step.groups; ++g)
      for (int half = 0; half < 2; ++half) {
        const KeyGroup& group = step.group[g];
        const std::int32_t* position = head.position + group.slot + 16 * half;
        float* s = step.scores + i * AttentionStep::keys + 32 * g + 16 * half;
        const auto key = _mm512_loadu_si512(position);
        __mmask16 seen = _mm512_cmple_epi32_mask(key, limit);
        if (half && !group.full) seen = 0;
        if (const bool* allowed = group.allowed[half]) {
          const auto* row = reinterpret_cast<const __m128i*>(allowed + i * p.pattern.block);
          const __m128i bytes = _mm_loadu_si128(row);
          seen &= _mm_test_epi8_mask(bytes, bytes);
        }
        F score = load(s) * set1(factor);
        if (mask) {
          const F added = seen == 0xffff && position[15] - position[0] == 15
                              ? load(mask + position[0])
                              : F{_mm512_mask_i32gather_ps(zero().v, seen, key, mask, 4)};
          score = score + added * set1(log2_e);
          seen &= _mm512_cmp_ps_mask(added.v, set1(-infinity).v, _CMP_NEQ_UQ);
        }
        store(s, select(seen, score, set1(-infinity)));
      }
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
