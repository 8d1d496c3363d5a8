// A piece of keys by AMX tiles: bfloat16 products, everything else in float.
//
//   S = Q K^T      rows of Q as they are, K^T in pairs of dims
//   P = 2^(S - m)  row by row, in place, rounded to bfloat16; scores are in units of log2 e
//   O += P V       V in pairs of keys
//
// Pieces are collected into steps of up to four groups of 32 keys, so that maxima, rescaling and
// sums of O are paid once in 128 keys. A step of 32 queries by 128 keys holds 16 KB of scores.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/attention_head.h"
#include "cpu/body/math.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// 2^x for what is rounded to bfloat16 next: relative error below 8e-5. For x = -inf the reduced
// argument is 0, and the scaling by 2^-inf gives 0.
inline F exp2_short(F x) {
  constexpr float c[] = {0.99992503f, 0.69583452f, 0.2260666f, 0.07802391f};
  const F fraction = {_mm512_reduce_ps(x.v, 1)};  // x - floor(x)
  return {_mm512_scalef_ps(polynomial(fraction, c).v, x.v)};
}

// In all lanes.
inline F largest(F x) {
  x = max(x, {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)});
  x = max(x, {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)});
  x = max(x, {_mm512_permute_ps(x.v, 0x4e)});
  return max(x, {_mm512_permute_ps(x.v, 0xb1)});
}

inline void store_pair(bf16* to, F first, F second) {
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
  _mm512_storeu_si512(to, both);
}

// Tiles of 16 queries, QT at a time.
template <int QT>
class TileAttention {
 public:
  using Element = bf16;
  struct Session {
    Tiles tiles{config()};
    static TileConfig config() {
      TileConfig c;
      for (int i = 0; i < 8; ++i) {
        c.row_bytes[i] = 64;
        c.rows[i] = 16;
      }
      return c;
    }
  };
  static constexpr int tile_queries = 16 * QT;
  static constexpr int64_t longest_piece = 32;
  static constexpr int64_t least_packed = 32;

  static int64_t key_floats(int64_t dim) { return (depth(dim) + width(dim)) / 2; }
  static int64_t tile_floats(int64_t dim) {
    return tile_queries * (depth(dim) / 2 + width(dim) + 17) + 64;
  }
  static int64_t work_floats(int64_t dim, int64_t resident) {
    return (resident + 64) * key_floats(dim) + tile_queries * (step_keys + 1) + 64;
  }

  TileAttention(const Head<bf16>& head, int64_t piece, int64_t resident, Arena& arena)
      : p(head.p),
        head(head),
        piece(piece),
        value_stride((resident + 64) * 16),
        keys(reinterpret_cast<bf16*>(arena.take((resident + 64) * depth(p.dim) / 2))),
        values(reinterpret_cast<bf16*>(arena.take((resident + 64) * width(p.dim) / 2))),
        scores(arena.take(tile_queries * step_keys)),
        fade(arena.take(tile_queries)) {}

  // The slot that is packed first from now on.
  void place(int64_t slot) { base = slot; }

  void pack_keys(int64_t slot) const {
    for (int64_t s = slot; s < slot + 32; s += 16)
      for (int64_t d = 0; d < p.dim; d += 32) pack_key_tile(s, d);
    for (int64_t d = 0; d < p.dim; d += 16) pack_value_tile(slot, d);
  }

  // Queries `first` .. `first` + count, whose sums are, or after a fresh start will be, in `state`.
  void enter(float* state, int64_t first, int queries, bool fresh) {
    Arena arena{state};
    q = reinterpret_cast<bf16*>(arena.take(tile_queries * depth(p.dim) / 2));
    o = arena.take(tile_queries * width(p.dim));
    top = arena.take(tile_queries);
    sum = arena.take(tile_queries * 16);
    query = first;
    count = queries;
    groups = 0;
    if (!fresh) return;
    copy_queries();
    for (int64_t i = 0; i < tile_queries * width(p.dim); i += 16) store(o + i, zero());
    for (int i = 0; i < tile_queries; ++i) {
      top[i] = -infinity;
      store(sum + 16 * i, zero());
    }
  }

  // The keys in the slots from `slot` on; allowed [queries][keys], rows a block apart, or null.
  void visit(int64_t slot, const bool* allowed) {
    const bool two = piece > 16;
    if (!two && groups && !group[groups - 1].full && group[groups - 1].slot + 16 == slot) {
      group[groups - 1].full = true;
      group[groups - 1].allowed[1] = allowed;
      return;
    }
    if (groups == step_groups) step();
    group[groups++] = {slot, {allowed, allowed ? allowed + 16 : nullptr}, two};
  }

  void leave(bool last) {
    if (groups) step();
    if (!last) return;
    for (int i = 0; i < count; ++i) {
      // The largest score alone contributes 1; only where no key was seen is the sum 0.
      const F inverse = set1(1 / largest_or_tiny(_mm512_reduce_add_ps(load(sum + 16 * i).v)));
      const float* from = o + i * width(p.dim);
      bf16* to = head.output(query + i);
      for (int64_t d = 0; d < p.dim; d += 16) {
        const F y = load(from + d) * inverse;
        if (p.dim - d < 16)
          store(to + d, y, static_cast<int>(p.dim - d));
        else
          store(to + d, y);
      }
    }
  }

 private:
  static constexpr int step_groups = 4, step_keys = 32 * step_groups;

  // 32 slots, of which the second half may be left out.
  struct Group {
    int64_t slot;
    const bool* allowed[2];  // of either half
    bool full;
  };

  const Attention<bf16>& p;
  const Head<bf16>& head;
  int64_t piece, base = 0, value_stride;
  bf16* keys;    // [slots / 16][depth / 32] tiles [16 pairs of dims][16 keys][2]
  bf16* values;  // [width / 16] by value_stride: [slots / 2][16 dims][2]
  float* scores;  // [queries][step_keys]; then probabilities, in the first half of each row
  float* fade;    // [queries], what the last step leaves of earlier sums
  // Of the tile: [queries][depth]; [queries][width] not yet divided by sum; largest score so far;
  // sums of 2^(score - top), 16 of a query, to be added up.
  bf16* q;
  float *o, *top, *sum;
  int64_t query;
  int count;
  Group group[step_groups];
  int groups = 0;

  static int64_t depth(int64_t dim) { return ceil_div(dim, 32) * 32; }
  static int64_t width(int64_t dim) { return ceil_div(dim, 16) * 16; }
  static float largest_or_tiny(float x) { return x < 1e-30f ? 1e-30f : x; }

  bf16* key_tile(int64_t slot, int64_t d) const {
    return keys + (slot - base) * depth(p.dim) + d * 16;
  }
  bf16* value_tile(int64_t slot, int64_t d) const {
    return values + d / 16 * value_stride + (slot - base) * 16;
  }

  // Elements d .. d + n of a row, or zeros.
  __m512i elements(const bf16* row, int64_t d, int n) const {
    const int64_t left = p.dim - d < n ? p.dim - d : n;
    return row ? _mm512_maskz_loadu_epi16(~std::uint32_t{0} >> (32 - left), row + d)
               : _mm512_setzero_si512();
  }

  void pack_key_tile(int64_t slot, int64_t d) const {
    F r[16];
    for (int j = 0; j < 16; ++j)
      r[j] = {_mm512_castsi512_ps(elements(head.key(slot + j), d, 32))};
    transpose(r);
    for (int i = 0; i < 16; ++i)
      store(reinterpret_cast<float*>(key_tile(slot, d)) + 16 * i, r[i]);
  }

  void pack_value_tile(int64_t slot, int64_t d) const {
    const auto words = [&](int64_t s) {
      return _mm512_cvtepu16_epi32(_mm512_castsi512_si256(elements(head.value(s), d, 16)));
    };
    for (int j = 0; j < 32; j += 2)
      _mm512_storeu_si512(value_tile(slot, d) + 16 * j,
                          _mm512_or_si512(words(slot + j),
                                          _mm512_slli_epi32(words(slot + j + 1), 16)));
  }

  // A negative scale changes the sign of q, so that the largest product is the largest score.
  void copy_queries() const {
    const auto sign = _mm512_set1_epi16(static_cast<short>(p.scale < 0 ? 0x8000 : 0));
    for (int i = 0; i < tile_queries; ++i)
      for (int64_t d = 0; d < p.dim; d += 32)
        _mm512_storeu_si512(
            q + i * depth(p.dim) + d,
            i < count ? _mm512_xor_si512(elements(head.query(query + i), d, 32), sign)
                      : _mm512_setzero_si512());
  }

  void step() {
    float factor = (p.scale < 0 ? -p.scale : p.scale) * log2_e;
    bool cut = head.mask;
    for (int g = 0; g < groups; ++g) {
      score(g);
      cut = cut || !group[g].full || group[g].allowed[0] || group[g].allowed[1] ||
            !head.sees_all(query, group[g].slot, 32);
    }
    if (cut) {
      for (int i = 0; i < count; ++i) mask_row(i, factor);
      factor = 1;
    }
    const bool changed = groups == 1   ? weigh<2>(factor)
                         : groups == 2 ? weigh<4>(factor)
                         : groups == 3 ? weigh<6>(factor)
                                       : weigh<8>(factor);
    if (changed) rescale();
    int64_t d = 0;
    for (; d + 16 < p.dim; d += 32) add_values<2>(d);
    if (d < p.dim) add_values<1>(d);
    groups = 0;
  }

  // Scores of a group: sums in tiles 0 to 3.
  void score(int g) const {
    const int64_t slot = group[g].slot, row = 2 * depth(p.dim);
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (QT == 2) {
      tile_zero<2>();
      tile_zero<3>();
    }
    for (int64_t d = 0; d < p.dim; d += 32) {
      tile_load<4>(q + d, row);
      tile_load<6>(key_tile(slot, d), 64);
      tile_dot<0, 4, 6>();
      tile_load<7>(key_tile(slot + 16, d), 64);
      tile_dot<1, 4, 7>();
      if constexpr (QT == 2) {
        tile_load<5>(q + d + 16 * depth(p.dim), row);
        tile_dot<2, 5, 6>();
        tile_dot<3, 5, 7>();
      }
    }
    float* s = scores + 32 * g;
    tile_store<0>(s, 4 * step_keys);
    tile_store<1>(s + 16, 4 * step_keys);
    if constexpr (QT == 2) {
      tile_store<2>(s + 16 * step_keys, 4 * step_keys);
      tile_store<3>(s + 16 * step_keys + 16, 4 * step_keys);
    }
  }

  // Scales the scores of a query, adds its mask, and hides what it may not see.
  void mask_row(int i, float factor) const {
    const auto limit = _mm512_set1_epi32(static_cast<int>(
        clamp(head.last_key(query + i), -1, no_key - 1)));
    const float* mask = head.mask ? head.mask + (query + i) * p.mask_stride.row : nullptr;
    for (int g = 0; g < groups; ++g)
      for (int half = 0; half < 2; ++half) {
        const std::int32_t* position = head.position + group[g].slot + 16 * half;
        float* s = scores + i * step_keys + 32 * g + 16 * half;
        const auto key = _mm512_loadu_si512(position);
        __mmask16 seen = _mm512_cmple_epi32_mask(key, limit);
        if (half && !group[g].full) seen = 0;
        if (const bool* allowed = group[g].allowed[half]) {
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

  // Scores become probabilities relative to the largest so far. Whether any earlier sum fades.
  template <int NS>
  bool weigh(float factor) const {
    bool changed = false;
    for (int i = 0; i < count; ++i) {
      float* row = scores + i * step_keys;
      F s[NS];
#pragma GCC unroll 8
      for (int j = 0; j < NS; ++j) s[j] = load(row + 16 * j);
      F most = s[0];
#pragma GCC unroll 8
      for (int j = 1; j < NS; ++j) most = max(s[j], most);
      const F before = set1(top[i]), now = max(largest(most) * set1(factor), before);
      // Where all is hidden so far, any finite number will do.
      const F shift = select(now < set1(-__FLT_MAX__), zero(), zero() - now);
      const F left = exp2_short(before + shift);
      F total = zero();
#pragma GCC unroll 8
      for (int j = 0; j < NS; ++j) {
        s[j] = exp2_short(fma(s[j], set1(factor), shift));
        total = total + s[j];
      }
      auto* weights = reinterpret_cast<bf16*>(row);
#pragma GCC unroll 4
      for (int j = 0; j < NS; j += 2) store_pair(weights + 16 * j, s[j], s[j + 1]);
      store(sum + 16 * i, fma(load(sum + 16 * i), left, total));
      store(top + i, now, 1);
      store(fade + i, left, 1);
      changed |= (left < set1(1)) != 0;
    }
    return changed;
  }

  void rescale() const {
    for (int i = 0; i < count; ++i) {
      const F factor = set1(fade[i]);
      float* row = o + i * width(p.dim);
      for (int64_t d = 0; d < p.dim; d += 16) store(row + d, load(row + d) * factor);
    }
  }

  // 16 ND dims of O, summed in tiles 0 to 3.
  template <int ND>
  void add_values(int64_t d) const {
    float* to = o + d;
    const int64_t row = 4 * width(p.dim), below = 16 * width(p.dim);
    tile_load<0>(to, row);
    if constexpr (ND == 2) tile_load<1>(to + 16, row);
    if constexpr (QT == 2) tile_load<2>(to + below, row);
    if constexpr (QT == 2 && ND == 2) tile_load<3>(to + below + 16, row);
    for (int g = 0; g < groups; ++g) {
      tile_load<4>(scores + 16 * g, 4 * step_keys);
      tile_load<6>(value_tile(group[g].slot, d), 64);
      tile_dot<0, 4, 6>();
      if constexpr (ND == 2) {
        tile_load<7>(value_tile(group[g].slot, d + 16), 64);
        tile_dot<1, 4, 7>();
      }
      if constexpr (QT == 2) {
        tile_load<5>(scores + 16 * step_keys + 16 * g, 4 * step_keys);
        tile_dot<2, 5, 6>();
        if constexpr (ND == 2) tile_dot<3, 5, 7>();
      }
    }
    tile_store<0>(to, row);
    if constexpr (ND == 2) tile_store<1>(to + 16, row);
    if constexpr (QT == 2) tile_store<2>(to + below, row);
    if constexpr (QT == 2 && ND == 2) tile_store<3>(to + below + 16, row);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
