// Which tile a problem of stacked_linear.h is for, and its launch.
#pragma once

#include "cuda/stacked_linear/stacked_linear.cuh"

namespace secateurs::cuda {

// The tile for BN outputs a row: of few rows of x, whose weights' bytes are all that counts, of some,
// or of many.
template <class T, int BN, bool SINGLE>
using FewRows = StackedTile<T, 16, BN, BN >= 64 ? 64 : 128, BN == 128 ? 4 : 6, 1, 1, 4, SINGLE>;
template <class T, int BN, bool SINGLE>
using SomeRows = StackedTile<T, 64, BN, BN == 128 ? 32 : 64, BN == 128 ? 5 : 4, BN >= 64 ? 2 : 4,
                             BN >= 64 ? 2 : 1, 1, SINGLE>;
template <class T, int BN, bool SINGLE>
using ManyRows = StackedTile<T, 128, BN, BN == 128 ? 32 : 64, BN == 128 ? 4 : 3, BN == 64 ? 2 : 4,
                             BN >= 64 ? 2 : 1, 1, SINGLE>;

template <bool SINGLE>
class StackedLauncher {
 public:
  StackedLauncher(const StackedLinear& p, const Cut& cut, const Launch& where)
      : s_{p, cut, 0, p.epilogue.aligned()}, where_(where) {
    while (1 << s_.log_bk < p.bk) ++s_.log_bk;
  }

  void run() const {
    if (!s_.p.epilogue.m || !s_.p.epilogue.n) return;
    with_tile([this](auto tile) { of_tile<decltype(tile)>(); });
  }

  std::int64_t at_once() const {
    std::int64_t blocks = 0;
    with_tile([&](auto tile) {
      using C = decltype(tile);
      blocks = cuda::at_once(reinterpret_cast<const void*>(&stacked_linear<C>), C::THREADS,
                             C::BYTES, where_.device);
    });
    return blocks;
  }

 private:
  // Calls `use` with a tile of the type that the problem asks for.
  template <class Use>
  void with_tile(const Use& use) const {
    s_.p.dtype == Dtype::float16 ? of_type<ptx::Half>(use) : of_type<ptx::BFloat>(use);
  }

  template <class T, class Use>
  void of_type(const Use& use) const {
    switch (s_.p.bn) {
      case 16:
        return of_width<T, 16>(use);
      case 32:
        return of_width<T, 32>(use);
      case 64:
        return of_width<T, 64>(use);
      case 128:
        return of_width<T, 128>(use);
    }
    throw std::invalid_argument("expected 16, 32, 64 or 128 outputs a row, got " +
                                std::to_string(s_.p.bn));
  }

  template <class T, int BN, class Use>
  void of_width(const Use& use) const {
    if (s_.cut.bm == 16) {
      use(FewRows<T, BN, SINGLE>{});
    } else if (s_.cut.bm == 64) {
      use(SomeRows<T, BN, SINGLE>{});
    } else {
      use(ManyRows<T, BN, SINGLE>{});
    }
  }

  template <class C>
  void of_tile() const {
    const std::int64_t blocks = s_.cut.tiles_m * (s_.cut.parts ? s_.cut.parts : s_.p.rows);
    const auto what = [&] {
      return std::string(SINGLE ? "vector_linear " : "block_sparse_linear ") + s_.p.text() +
             " as tiles of " + std::to_string(C::BM) + " rows, " + std::to_string(s_.cut.parts) +
             " parts";
    };
    launch(stacked_linear<C>, dim3(static_cast<unsigned>(blocks)), C::THREADS, C::BYTES, where_, s_,
           what);
    if (s_.cut.parts)
      launch(finish_pieces<typename C::T>, dim3(static_cast<unsigned>(s_.cut.tiles_m * s_.p.rows)),
             128, 0, where_, s_, what);
  }

  StackedParameters s_;
  Launch where_;
};

}  // namespace secateurs::cuda
