// Included before every C++ file of Horovod 0.28.1 when setup.sh builds it, because newer compilers refuse its headers.
#pragma once

// Horovod's headers use these without including them. In GCC 12 and older, other headers include them; in GCC 13 no longer.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

// The class `span` of the FlatBuffers that Horovod ships assigns to a const member, which GCC 14 refuses. FlatBuffers can use
// std::span instead. Horovod is C++17, which has no std::span yet: these are the parts of it that FlatBuffers uses.
#if __cplusplus < 202002L
#define FLATBUFFERS_USE_STD_SPAN

namespace std {

constexpr size_t dynamic_extent = static_cast<size_t>(-1);

template <class T, size_t Extent = dynamic_extent>
class span {
 public:
  constexpr span(T* data, size_t size) noexcept : data_(data), size_(size) {}
  constexpr T* data() const noexcept { return data_; }
  constexpr size_t size() const noexcept { return size_; }
  constexpr T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_;
  size_t size_;
};

}  // namespace std
#endif
