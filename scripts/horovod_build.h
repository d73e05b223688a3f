// Included before every C++ file of Horovod 0.28.1 when setup.sh builds it, because newer compilers refuse its headers.
#pragma once

// They use these and do not include them. GCC 12 and older brought them along with other headers; GCC 13 no longer does.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

// The class `span` of the FlatBuffers that Horovod ships assigns a const member, which GCC 14 refuses to read. FlatBuffers takes
// std::span in its place when told to. Horovod is C++17, where there is no std::span yet: here is as much of one as is used.
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
