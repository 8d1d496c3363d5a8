#pragma once

struct __half {
  _Float16 number;
  __half() = default;
  explicit __half(float x) : number(static_cast<_Float16>(x)) {}
  explicit operator float() const { return number; }
};

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return __half(x); }
