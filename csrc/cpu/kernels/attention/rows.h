// Few queries over many keys, as when text is generated: bound by reading keys and values once.
//
// An item is a share of the keys of one key/value head; all queries of all heads that read it take
// the share's rows where they lie, without packing, up to four queries at a time:
//
//   score   as many keys at a time as give a vector of scores: products along the dims, added up
//   weigh   relative to the largest score of the share
//   add     values times weights
//
// What the shares yield is merged in their order. Shares are cut by the number of keys alone, so the
// result does not depend on the number of threads.
#pragma once

#include <type_traits>

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/panel.h"
#include "cpu/kernels/share.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t most_rows = 2;     // queries that are still few: each takes all keys by itself
constexpr int64_t share_keys = 512;  // 256 KB of keys and values of 64 dims
constexpr int64_t serial_rows = 50'000;  // multiply-adds, each of which reads: not worth a thread

template <class T>
class RowAttention {
 public:
  explicit RowAttention(const Attention<T>& p) : p(p) {
    shares = p.keys ? ceil_div(p.keys, share_keys) : 1;
    width = ceil_div(p.dim, W * per_word) * W * per_word;
    alike = !p.pattern.indptr && (!p.causal || p.queries == 1);
    threads = p.batch * p.heads * p.queries * p.keys * p.dim < serial_rows ? 1 : p.threads;
    rows =
        scratch(0, static_cast<std::size_t>(p.batch * p.heads * shares * p.queries * row_floats()));
  }

  void run() const {
    const int64_t heads = p.batch * p.heads;
    SharedItems items(heads * shares, threads);
    in_parallel(threads, [&] {
      items.visit(
          [&](int64_t i) { solve(i / shares / p.heads, i / shares % p.heads, i % shares); });
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < heads * p.queries; ++i)
        merge(i / p.queries / p.heads, i / p.queries % p.heads, i % p.queries);
    });
  }

 private:
  using Word = std::conditional_t<sizeof(T) == sizeof(float), float, Pair>;
  static constexpr int W = F::width, per_word = sizeof(Word) / sizeof(T);
  static constexpr int most_together = 4;  // queries

  // What one query has seen of one share.
  struct Row {
    const float* mask;
    Word* q;           // [dims], zeros up to whole vectors
    float* o;          // [dims, to whole vectors], not yet divided by sum: of each vector of words
                       // the first elements, then the second ones
    float *top, *sum;  // the largest score, the sum of 2^(score - top)
  };

  const Attention<T>& p;
  int64_t shares, width;
  bool alike;  // all queries of a sequence see the same keys
  int threads;
  float* rows;  // of each share of each head of each sequence, [queries][row_floats]

  int64_t row_floats() const { return 2 * width + 16; }

  Row row(int64_t b, int64_t h, int64_t share, int64_t query) const {
    float* at = rows + (((b * p.heads + h) * shares + share) * p.queries + query) * row_floats();
    const float* mask = p.mask ? p.mask + b * p.mask_stride.batch + h * p.mask_stride.head +
                                     query * p.mask_stride.row
                               : nullptr;
    return {mask, reinterpret_cast<Word*>(at), at + width, at + 2 * width, at + 2 * width + 1};
  }

  // The share of the key/value head of h, if h is the first head that reads it.
  void solve(int64_t b, int64_t h, int64_t share) const {
    for (int64_t other = 0; other < h; ++other)
      if (p.kv_of[other] == p.kv_of[h]) return;
    std::int32_t known[share_keys + W], seen[share_keys + W];
    const int64_t count = keys_of(b, share, known);
    const Head<T> keys(p, b, h, nullptr, 0);
    Row together[most_together];
    int waiting = 0;
    for (int64_t other = h; other < p.heads; ++other) {
      if (p.kv_of[other] != p.kv_of[h]) continue;
      const Head<T> head(p, b, other, nullptr, 0);
      for (int64_t i = 0; i < p.queries; ++i) {
        const Row r = row(b, other, share, i);
        __builtin_memset(r.q, 0, static_cast<std::size_t>(2 * width) * sizeof(float));
        __builtin_memcpy(r.q, head.query(i), static_cast<std::size_t>(p.dim) * sizeof(T));
        if (!alike) {
          attend<1>(keys, &r, seen, choose(head, i, known, count, seen));
        } else {
          together[waiting++] = r;
          if (waiting < most_together) continue;
          attend<most_together>(keys, together, known, count);
          waiting = 0;
        }
      }
    }
    for (int i = 0; i < waiting; ++i) attend<1>(keys, together + i, known, count);
  }

  // The keys of a share that are not hidden.
  int64_t keys_of(int64_t b, int64_t share, std::int32_t* known) const {
    const int64_t first = share * share_keys, left = p.keys - first;
    const auto count = static_cast<std::int32_t>(left < share_keys ? left : share_keys);
    const auto begin = static_cast<std::int32_t>(first);
    const bool* mask = p.key_mask ? p.key_mask + b * p.keys : nullptr;
    int64_t kept = 0;
    if (!mask)
      for (; kept < count; ++kept) known[kept] = begin + static_cast<std::int32_t>(kept);
    else
      for (std::int32_t j = begin; j < begin + count; ++j)
        if (mask[j]) known[kept++] = j;
    return kept;
  }

  // The keys that query i may see, of `count` ascending ones.
  int64_t choose(const Head<T>& head, int64_t i, const std::int32_t* known, int64_t count,
                 std::int32_t* seen) const {
    const BlockPattern& pattern = p.pattern;
    const int64_t last = head.last_key(i);
    int64_t chosen = 0;
    if (!pattern.indptr) {
      for (; chosen < count && known[chosen] <= last; ++chosen) seen[chosen] = known[chosen];
      return chosen;
    }
    const std::int32_t* row =
        pattern.indptr + (pattern.per_head ? head.h * (pattern.rows + 1) : 0) + i / pattern.block;
    int64_t n = row[0];
    for (int64_t j = 0; j < count && known[j] <= last; ++j) {
      const int64_t column = known[j] / pattern.block;
      while (n < row[1] && pattern.indices[n] < column) ++n;
      if (n == row[1]) break;
      if (pattern.indices[n] > column) continue;
      const std::int64_t which = pattern.partial[n];
      if (which < 0 || pattern.masks[(which * pattern.block + i % pattern.block) * pattern.block +
                                     known[j] % pattern.block])
        seen[chosen++] = known[j];
    }
    return chosen;
  }

  // Of `rows` queries, all of which see these keys; behind them there is room for a vector's.
  template <int R>
  void attend(const Head<T>& head, const Row* row, std::int32_t* seen, int64_t count) const {
    float s[R][share_keys + W];
    constexpr int K = W / R;
    const int64_t all = ceil_div(count, W) * W;
    for (int64_t j = count; j < all; ++j) seen[j] = seen[count - 1];
    for (int64_t j = 0; j < all; j += K) {
      float lane[W];
      store(lane, score<R>(head, row, seen + j) * set1(p.scale * log2_e));
      for (int r = 0; r < R; ++r) __builtin_memcpy(s[r] + j, lane + r * K, K * sizeof(float));
    }
    for (int r = 0; r < R; ++r) {
      if (row[r].mask) add_mask(row[r].mask, seen, count, s[r]);
      for (int64_t j = count; j < all; ++j) s[r][j] = -infinity;
      weigh(row[r], s[r], all);
    }
    const int64_t vectors = width / (W * per_word);
    constexpr int most = 4 / per_word;
    int64_t v = 0;
    for (; v + most <= vectors; v += most) add<R, most>(head, row, v, seen, s, count);
    if constexpr (most > 2)
      for (; v + 2 <= vectors; v += 2) add<R, 2>(head, row, v, seen, s, count);
    for (; v < vectors; ++v) add<R, 1>(head, row, v, seen, s, count);
  }

  // Vector v of the words of a row, zeros behind its end.
  F read(const T* row, int64_t v) const {
    const T* from = row + v * W * per_word;
    const int64_t left = p.dim - v * W * per_word;
    if (left >= W * per_word) return words(reinterpret_cast<const Word*>(from));
    if (left % per_word == 0)
      return load(reinterpret_cast<const float*>(from), static_cast<int>(left / per_word));
    T part[W * per_word] = {};
    for (int64_t i = 0; i < left; ++i) part[i] = from[i];
    return words(reinterpret_cast<const Word*>(part));
  }

  // Lane r W / R + j: of query r and key j.
  template <int R>
  F score(const Head<T>& head, const Row* row, const std::int32_t* seen) const {
    constexpr int K = W / R;
    const T* key[K];
#pragma GCC unroll 16
    for (int j = 0; j < K; ++j) key[j] = head.k + seen[j] * p.k_stride.row;
    F sum[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) sum[i] = zero();
    const auto step = [&](int64_t v, const auto& read_key) __attribute__((always_inline)) {
      F q[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) q[r] = words(row[r].q + v * W);
#pragma GCC unroll 16
      for (int j = 0; j < K; ++j) {
        const F x = read_key(key[j]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r * K + j] = multiply_add(Word{}, q[r], x, sum[r * K + j]);
      }
    };
    const int64_t whole = p.dim / (W * per_word);
    for (int64_t v = 0; v < whole; ++v)
      step(v, [&](const T* row) {
        const T* from = row + v * W * per_word;
        __builtin_prefetch(from + W * p.k_stride.row);
        return words(reinterpret_cast<const Word*>(from));
      });
    if (whole * W * per_word < p.dim) step(whole, [&](const T* row) { return read(row, whole); });
    return totals(sum);
  }

  static void add_mask(const float* mask, const std::int32_t* seen, int64_t count, float* s) {
    for (int64_t j = 0; j < count; ++j) {
      const float added = mask[seen[j]] * log2_e;
      s[j] = added == -infinity ? added : s[j] + added;
    }
  }

  // Scores become weights; `count` is whole vectors.
  static void weigh(const Row& r, float* s, int64_t count) {
    F most = set1(-infinity);
    for (int64_t j = 0; j < count; j += W) most = max(load(s + j), most);
    float lane[W], top = -infinity;
    store(lane, most);
    for (int i = 0; i < W; ++i) top = lane[i] > top ? lane[i] : top;
    // Where all is hidden, any finite number will do.
    const F base = set1(top < -__FLT_MAX__ ? 0 : top);
    F sum = zero();
    for (int64_t j = 0; j < count; j += W) {
      const F weight = exp2(load(s + j) - base);
      store(s + j, weight);
      sum = sum + weight;
    }
    *r.top = top;
    *r.sum = total(sum);
  }

  // Vectors v .. v + NV of the words of values.
  template <int R, int NV>
  void add(const Head<T>& head, const Row* row, int64_t v, const std::int32_t* seen,
           const float (*weight)[share_keys + W], int64_t count) const {
    // Few sums do not hide the latency of a multiply-add: keys take turns.
    constexpr int lanes = R * NV * per_word >= 8 ? 1 : R * NV * per_word >= 4 ? 2 : 4;
    F sum[lanes][R][NV][per_word];
#pragma GCC unroll 4
    for (int l = 0; l < lanes; ++l)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < NV; ++i)
#pragma GCC unroll 2
          for (int e = 0; e < per_word; ++e) sum[l][r][i][e] = zero();

    const auto take = [&](int64_t j, auto& to) __attribute__((always_inline)) {
      const T* from = head.v + seen[j] * p.v_stride.row;
#pragma GCC unroll 4
      for (int i = 0; i < NV; ++i) {
        __builtin_prefetch(from + (v + i) * W * per_word + 8 * p.v_stride.row);
        F part[per_word];
        split(Word{}, read(from, v + i), part);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const F w = set1(weight[r][j]);
#pragma GCC unroll 2
          for (int e = 0; e < per_word; ++e) to[r][i][e] = fma(w, part[e], to[r][i][e]);
        }
      }
    };
    int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) take(j + l, sum[l]);
    for (; j < count; ++j) take(j, sum[0]);

#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < NV; ++i)
#pragma GCC unroll 2
        for (int e = 0; e < per_word; ++e) {
          F all = sum[0][r][i][e];
#pragma GCC unroll 4
          for (int l = 1; l < lanes; ++l) all = all + sum[l][r][i][e];
          store(row[r].o + ((v + i) * per_word + e) * W, all);
        }
  }

  void merge(int64_t b, int64_t h, int64_t query) const {
    float top = -infinity, sum = 0;
    for (int64_t s = 0; s < shares; ++s) {
      const float share = *row(b, h, s, query).top;
      top = share > top ? share : top;
    }
    const float base = top < -__FLT_MAX__ ? 0 : top;
    const Row all = row(b, h, 0, query);
    for (int64_t s = 0; s < shares; ++s) {
      const Row r = row(b, h, s, query);
      float lane[W];
      store(lane, exp2(set1(*r.top - base)));
      const float part = lane[0];
      sum += *r.sum * part;
      for (int64_t d = 0; d < width; d += W) {
        const F o = load(r.o + d) * set1(part);
        store(all.o + d, s ? load(all.o + d) + o : o);
      }
    }
    const F inverse = set1(1 / (sum < 1e-30f ? 1e-30f : sum));
    T* out = p.out + ((b * p.queries + query) * p.heads + h) * p.dim;
    for (int64_t d = 0; d < p.dim; d += W * per_word) {
      T part[per_word][W];
      for (int e = 0; e < per_word; ++e) store(part[e], load(all.o + d + e * W) * inverse);
      const int64_t left = p.dim - d < W * per_word ? p.dim - d : W * per_word;
      for (int64_t i = 0; i < left; ++i) out[d + i] = part[i % per_word][i / per_word];
    }
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
