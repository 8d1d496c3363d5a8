// Few queries over many keys, as when text is generated: bound by reading keys and values once.
//
// An item is a share of the keys of one key/value head; all queries of all heads that read it take
// block after block while its rows are in the caches, where they lie, without packing:
//
//   score   a vector of keys at a time: products along the dims, turned, and added up
//   weigh   relative to the largest score so far
//   add     values times weights
//
// What the shares yield is merged in their order. Shares are cut by the number of keys alone, so the
// result does not depend on the number of threads.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/attention_head.h"
#include "cpu/body/math.h"
#include "cpu/body/share.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t most_rows = 2;      // queries that are still few: each takes all keys by itself
constexpr int64_t share_keys = 1024;  // 512 KB of keys and values of 64 dims
constexpr int64_t block_keys = 128;

template <class T>
class RowAttention {
 public:
  explicit RowAttention(const Attention<T>& p) : p(p) {
    shares = p.keys ? ceil_div(p.keys, share_keys) : 1;
    width = ceil_div(p.dim, W) * W;
    threads = p.batch * p.heads * p.queries * p.keys * p.dim < serial_limit ? 1 : p.threads;
    rows =
        scratch(0, static_cast<std::size_t>(p.batch * p.heads * shares * p.queries * row_floats()));
  }

  void run() const {
    const int64_t heads = p.batch * p.heads;
    SharedItems items(heads * shares, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      items.visit(
          [&](int64_t i) { solve(i / shares / p.heads, i / shares % p.heads, i % shares); });
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < heads * p.queries; ++i)
        merge(i / p.queries / p.heads, i / p.queries % p.heads, i % p.queries);
    }
  }

 private:
  static constexpr int W = F::width;

  // What one query has seen of one share.
  struct Row {
    float *q, *o;      // [dims, to whole vectors]: scaled; not yet divided by sum
    float *top, *sum;  // the largest score, the sum of 2^(score - top)
  };

  const Attention<T>& p;
  int64_t shares, width;
  int threads;
  float* rows;  // of each share of each head of each sequence, [queries][row_floats]

  int64_t row_floats() const { return 2 * width + 16; }

  Row row(int64_t b, int64_t h, int64_t share, int64_t query) const {
    float* at = rows + (((b * p.heads + h) * shares + share) * p.queries + query) * row_floats();
    return {at, at + width, at + 2 * width, at + 2 * width + 1};
  }

  // The share of the key/value head of h, if h is the first head that reads it.
  void solve(int64_t b, int64_t h, int64_t share) const {
    for (int64_t other = 0; other < h; ++other)
      if (p.kv_of[other] == p.kv_of[h]) return;
    for_each_row(b, h, share, [&](const Head<T>& head, int64_t i, const Row& r) {
      for (int64_t d = 0; d < width; ++d) r.q[d] = r.o[d] = 0;
      *r.top = -infinity;
      *r.sum = 0;
      for (int64_t d = 0; d < p.dim; d += W)
        store(r.q + d, read(head.query(i), d) * set1(p.scale * log2_e));
    });
    const int64_t end = (share + 1) * share_keys < p.keys ? (share + 1) * share_keys : p.keys;
    for (int64_t first = share * share_keys; first < end; first += block_keys) {
      std::int32_t known[block_keys];
      int64_t count = 0;
      for (int64_t j = first; j < first + block_keys && j < end; ++j)
        if (!p.key_mask || p.key_mask[b * p.keys + j])
          known[count++] = static_cast<std::int32_t>(j);
      for_each_row(b, h, share, [&](const Head<T>& head, int64_t i, const Row& r) {
        std::int32_t seen[block_keys];
        attend(head, i, r, seen, choose(head, i, known, count, seen));
      });
    }
  }

  template <class Call>
  void for_each_row(int64_t b, int64_t first_head, int64_t share, const Call& call) const {
    for (int64_t h = first_head; h < p.heads; ++h) {
      if (p.kv_of[h] != p.kv_of[first_head]) continue;
      const Head<T> head(p, b, h, nullptr, 0);
      for (int64_t i = 0; i < p.queries; ++i) call(head, i, row(b, h, share, i));
    }
  }

  // The keys that query i may see, of `count` ascending ones within a block.
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

  // Dims d .. d + W of a row, zeros behind its end.
  F read(const T* row, int64_t d) const {
    return p.dim - d < W ? load(row + d, static_cast<int>(p.dim - d)) : load(row + d);
  }

  void attend(const Head<T>& head, int64_t i, const Row& r, const std::int32_t* seen,
              int64_t count) const {
    if (!count) return;
    const T *key[block_keys], *value[block_keys];
    for (int64_t j = 0; j < block_keys; ++j) {
      const int64_t position = seen[j < count ? j : count - 1];
      key[j] = head.k + position * p.k_stride.row;
      value[j] = head.v + position * p.v_stride.row;
    }
    float s[block_keys];
    for (int64_t j = 0; j < count; j += W) store(s + j, score(r.q, key + j));
    if (head.mask)
      for (int64_t j = 0; j < count; ++j) {
        const float added = head.mask[i * p.mask_stride.row + seen[j]] * log2_e;
        s[j] = added == -infinity ? added : s[j] + added;
      }
    for (int64_t j = count; j < ceil_div(count, W) * W; ++j) s[j] = -infinity;
    const float fade = weigh(r, s, count);
    for (int64_t d = 0; d < p.dim; d += 4 * W) add(r.o, d, fade, s, value, count);
  }

  // Of W keys.
  F score(const float* q, const T* const* key) const {
    F sum[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) sum[j] = zero();
    int64_t d = 0;
    for (; d + W <= p.dim; d += W) {
      const F x = load(q + d);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) {
        __builtin_prefetch(key[j] + d + W * p.k_stride.row);
        sum[j] = fma(x, load(key[j] + d), sum[j]);
      }
    }
    if (d < p.dim)
      for (int j = 0; j < W; ++j) sum[j] = fma(load(q + d), read(key[j], d), sum[j]);
    transpose(sum);
    F total = sum[0];
#pragma GCC unroll 16
    for (int j = 1; j < W; ++j) total = total + sum[j];
    return total;
  }

  // Scores become weights; what is left of earlier sums.
  static float weigh(const Row& r, float* s, int64_t count) {
    F most = set1(*r.top);
    for (int64_t j = 0; j < count; j += W) most = max(load(s + j), most);
    const float top = across(most, [](float a, float b) { return a > b ? a : b; });
    // Where all is hidden so far, any finite number will do.
    const float base = top < -__FLT_MAX__ ? 0 : top;
    F total = zero();
    for (int64_t j = 0; j < count; j += W) {
      const F weight = exp2(load(s + j) - set1(base));
      store(s + j, weight);
      total = total + weight;
    }
    const float fade = first_of(exp2(set1(*r.top - base)));
    *r.sum = *r.sum * fade + across(total, [](float a, float b) { return a + b; });
    *r.top = top;
    return fade;
  }

  template <class Join>
  static float across(F x, const Join& join) {
    float lane[W];
    store(lane, x);
    float all = lane[0];
    for (int i = 1; i < W; ++i) all = join(all, lane[i]);
    return all;
  }
  static float first_of(F x) {
    float lane[W];
    store(lane, x);
    return lane[0];
  }

  // Up to four vectors of values from d on, by even and odd keys.
  void add(float* o, int64_t d, float fade, const float* weight, const T* const* value,
           int64_t count) const {
    const int64_t vectors = ceil_div(p.dim - d, W);
    if (vectors >= 4 && p.dim - d >= 4 * W)
      add_vectors<4>(o + d, fade, weight, value, d, count);
    else
      for (int64_t v = 0; v < vectors; ++v) {
        F sum = zero();
        for (int64_t j = 0; j < count; ++j)
          sum = fma(set1(weight[j]), read(value[j], d + v * W), sum);
        float* to = o + d + v * W;
        store(to, fma(load(to), set1(fade), sum));
      }
  }

  template <int NV>
  void add_vectors(float* o, float fade, const float* weight, const T* const* value, int64_t d,
                   int64_t count) const {
    F sum[2][NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[0][v] = sum[1][v] = zero();
    const auto take = [&](int64_t j, F(&to)[NV]) __attribute__((always_inline)) {
      const T* from = value[j] + d;
      const F w = set1(weight[j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        __builtin_prefetch(from + v * W + 8 * p.v_stride.row);
        to[v] = fma(w, load(from + v * W), to[v]);
      }
    };
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      take(j, sum[0]);
      take(j + 1, sum[1]);
    }
    if (j < count) take(j, sum[0]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      store(o + v * W, fma(load(o + v * W), set1(fade), sum[0][v] + sum[1][v]));
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
      const float part = first_of(exp2(set1(*r.top - base)));
      sum += *r.sum * part;
      for (int64_t d = 0; d < p.dim; d += W) {
        const F o = load(r.o + d) * set1(part);
        store(all.o + d, s ? load(all.o + d) + o : o);
      }
    }
    const F inverse = set1(1 / (sum < 1e-30f ? 1e-30f : sum));
    T* out = p.out + ((b * p.queries + query) * p.heads + h) * p.dim;
    for (int64_t d = 0; d < p.dim; d += W) {
      const F y = load(all.o + d) * inverse;
      if (p.dim - d < W)
        store(out + d, y, static_cast<int>(p.dim - d));
      else
        store(out + d, y);
    }
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
