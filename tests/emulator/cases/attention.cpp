// Attention: every head dimension and tile, patterns of every block, uneven heads, padding, causality.
#include "cuda/attention/attention.h"

#include "cases/case.h"

using namespace secateurs::cuda;

namespace {

constexpr int AS_CHOSEN = -1;

struct Problem {
  int batch, heads, kv_heads, queries, keys, dim;
  bool causal = false, padded = false;
  int block = 0;  // of a random pattern; 0: none
  bool per_head = true, mapped = false;
  int parts = 0;
};

std::string text(const Problem& p, Dtype dtype) {
  return std::string(name(dtype)) + " heads=" + std::to_string(p.heads) + "/" +
         std::to_string(p.kv_heads) + (p.mapped ? " mapped" : "") +
         " tq=" + std::to_string(p.queries) + " tk=" + std::to_string(p.keys) +
         " d=" + std::to_string(p.dim) + (p.causal ? " causal" : "") + (p.padded ? " padded" : "") +
         " block=" + std::to_string(p.block) + (p.per_head ? "" : " shared") +
         (p.parts ? " parts=" + std::to_string(p.parts) : "");
}

// The blocks of a random pattern, and which scores it allows.
struct Pattern {
  std::vector<std::int32_t> indptr, indices, partial;
  std::vector<unsigned char> masks;
  std::vector<std::vector<bool>> allowed;  // [heads][queries * keys]

  Pattern(const Problem& p, Random& random) {
    if (!p.block) return;
    const int rows = (p.queries + p.block - 1) / p.block,
              columns = (p.keys + p.block - 1) / p.block;
    for (int h = 0; h < (p.per_head ? p.heads : 1); ++h) {
      allowed.emplace_back(std::size_t{1} * p.queries * p.keys);
      for (int r = 0; r < rows; ++r) {
        indptr.push_back(static_cast<std::int32_t>(indices.size()));
        for (int c = 0; c < columns; ++c) {
          if (!random.chance(0.6)) continue;
          const bool cut = random.chance(0.5);
          indices.push_back(c);
          partial.push_back(cut ? static_cast<int>(masks.size()) / (p.block * p.block) : -1);
          for (int i = 0; i < p.block; ++i)
            for (int j = 0; j < p.block; ++j) {
              const bool seen = !cut || random.chance(0.7);
              if (cut) masks.push_back(seen);
              const int query = r * p.block + i, key = c * p.block + j;
              if (seen && query < p.queries && key < p.keys)
                allowed[h][query * p.keys + key] = true;
            }
        }
      }
      indptr.push_back(static_cast<std::int32_t>(indices.size()));
    }
  }
};

void run(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  // As one projection leaves them: [batch, length, heads, dim], keys and values side by side.
  Array q(std::size_t{1} * p.batch * p.queries * p.heads * p.dim, dtype);
  Array kv(std::size_t{1} * p.batch * p.keys * 2 * p.kv_heads * p.dim, dtype);
  q.fill(random, 2);
  kv.fill(random, 2);
  const std::int64_t q_row = p.heads * p.dim, kv_row = 2 * p.kv_heads * p.dim;
  const auto k_at = [&](int b, int key, int g, int d) {
    return (std::int64_t{b} * p.keys + key) * kv_row + g * p.dim + d;
  };
  std::vector<unsigned char> padding(p.batch * p.keys, 1);
  if (p.padded)
    for (int i = 0; i < p.batch * p.keys; ++i)
      if (i < p.keys / 3 || random.chance(0.3)) {
        padding[i] = 0;
        for (int j = 0; j < kv_row; ++j) kv.set(i * kv_row + j, NAN);
      }
  std::vector<std::int32_t> kv_of;
  for (int h = 0; h < p.heads; ++h)
    kv_of.push_back(p.mapped ? random.below(p.kv_heads) : h / (p.heads / p.kv_heads));
  const Pattern pattern(p, random);
  const Table<std::int32_t> map(kv_of), indptr(pattern.indptr), indices(pattern.indices),
      partial(pattern.partial);
  const Table<unsigned char> masks(pattern.masks), mask(padding);
  Array out(std::size_t{1} * p.batch * p.queries * p.heads * p.dim, dtype);

  Attention problem{};
  problem.q = q.data();
  problem.k = kv.data();
  problem.v = static_cast<const unsigned char*>(kv.data()) + 2 * p.kv_heads * p.dim;
  problem.q_stride = {p.queries * q_row, p.dim, q_row};
  problem.k_stride = problem.v_stride = {p.keys * kv_row, p.dim, kv_row};
  problem.batch = p.batch;
  problem.heads = p.heads;
  problem.kv_heads = p.kv_heads;
  problem.queries = p.queries;
  problem.keys = p.keys;
  problem.dim = p.dim;
  problem.kv_of = p.mapped ? map.data() : nullptr;
  problem.key_mask = p.padded ? reinterpret_cast<const bool*>(mask.data()) : nullptr;
  problem.causal = p.causal;
  problem.scale = 0.3f;
  if (p.block)
    problem.pattern = {indptr.data(),  indices.data(),
                       partial.data(), reinterpret_cast<const bool*>(masks.data()),
                       p.block,        (p.queries + p.block - 1) / p.block,
                       p.per_head};
  problem.out = out.data();
  problem.dtype = dtype;
  AttentionCut how = cut(problem, p.keys, emulator::multiprocessors);
  if (p.parts != AS_CHOSEN) how.parts = p.parts;
  const Array working(partial_sums(problem, how), Dtype::float32);
  problem.partial = static_cast<float*>(working.data());
  attention(problem, how, {0, nullptr});

  // The weights of values are rounded to the kernel's dtype.
  Numbers truth(out.count()), allowed(out.count());
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.heads; ++h)
      for (int i = 0; i < p.queries; ++i) {
        std::vector<std::pair<int, double>> seen;
        for (int j = 0; j < p.keys; ++j) {
          if (!padding[b * p.keys + j] || (p.causal && j > i + p.keys - p.queries)) continue;
          if (p.block && !pattern.allowed[p.per_head ? h : 0][i * p.keys + j]) continue;
          double score = 0;
          for (int d = 0; d < p.dim; ++d)
            score += q.get((std::int64_t{b} * p.queries + i) * q_row + h * p.dim + d) *
                     kv.get(k_at(b, j, kv_of[h], d));
          seen.push_back({j, std::exp(score * 0.3)});
        }
        double total = 0;
        for (const auto& [j, weight] : seen) total += weight;
        for (const auto& [j, weight] : seen)
          for (int d = 0; d < p.dim; ++d) {
            const auto at = ((std::int64_t{b} * p.queries + i) * p.heads + h) * p.dim + d;
            const double part = weight / total * kv.get(k_at(b, j, p.kv_heads + kv_of[h], d));
            truth[at] += part;
            allowed[at] += rounding(dtype) * std::abs(part);
          }
      }
  judge(out, truth, allowed);
}

}  // namespace

std::vector<Case> attention_cases() {
  std::vector<Case> cases;
  const auto add = [&](const Problem& p, Dtype dtype) {
    Attention sizes{};
    sizes.batch = p.batch, sizes.heads = p.heads, sizes.queries = p.queries, sizes.dim = p.dim;
    sizes.pattern.block = p.block;
    const int tile = cut(sizes, p.keys, emulator::multiprocessors).queries;
    cases.push_back({"attention of " + std::to_string(p.dim) + " in tiles of " +
                         std::to_string(tile) + ", " + name(dtype),
                     text(p, dtype), [=](std::uint64_t seed) { run(p, dtype, seed); }});
  };
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16})
    for (const int dim : {32, 64, 80, 96, 128}) {
      add({2, 3, 1, 70, 70, dim, true, true}, dtype);
      add({1, 4, 2, 1, 150, dim, true, false, 0, true, true}, dtype);
      add({1, 2, 2, 40, 100, dim, true, true, 16}, dtype);
      add({1, 2, 1, 70, 90, dim, false, true, 64}, dtype);
    }
  // Heads that share a tile, with all that a query's place in it decides.
  add({2, 6, 2, 1, 70, 64}, Dtype::bfloat16);
  add({1, 8, 2, 4, 90, 32, true, true}, Dtype::float16);
  add({1, 4, 2, 5, 40, 128, true, true, 16, false}, Dtype::bfloat16);
  add({1, 3, 1, 5, 3, 80, true}, Dtype::float16);
  add({2, 4, 1, 3, 400, 96, true, true, 64, false, false, 3}, Dtype::float16);
  add({1, 4, 2, 2, 1100, 64, true, false, 0, true, false, AS_CHOSEN}, Dtype::bfloat16);
  // In parts: more of them than steps, queries that see nothing of one, patterns, all kinds of tiles.
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
    add({2, 4, 2, 1, 520, 64, true, true, 0, true, true, AS_CHOSEN}, dtype);
    add({1, 2, 1, 16, 300, 80, true, true, 0, true, false, 9}, dtype);
    add({2, 2, 1, 70, 330, 32, true, false, 0, true, false, 3}, dtype);
    add({1, 2, 2, 40, 200, 96, true, true, 16, true, false, 2}, dtype);
    add({1, 2, 1, 90, 200, 128, false, true, 64, false, false, 4}, dtype);
  }
  add({1, 1, 1, 90, 30, 32, true, false, 0, true, false, 2}, Dtype::bfloat16);
  add({1, 1, 1, 3, 0, 32, false, false, 0, true, false, 2}, Dtype::bfloat16);
  add({1, 4, 2, 130, 130, 32, true, false, 128, true, true}, Dtype::bfloat16);
  add({2, 2, 2, 100, 200, 32, false, false, 32, false}, Dtype::bfloat16);
  add({1, 1, 1, 200, 200, 32, true}, Dtype::float16);
  add({1, 1, 1, 90, 30, 32, true}, Dtype::float16);  // the first 60 queries see nothing
  add({2, 4, 1, 64, 0, 128}, Dtype::float16);
  return cases;
}
