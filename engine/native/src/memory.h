// Memory that grows and is never read before it is written; in huge pages where the system has them.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

template <class T> class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t size) { reserve(size); }
    Buffer(Buffer &&other) noexcept { *this = std::move(other); }
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    // Room for `size` elements; what was there before is lost when it grows.
    T *reserve(size_t size) {
        if (size > size_) {
            const size_t unit = size * sizeof(T) >= HUGE ? HUGE : 64;
            const size_t bytes = (size * sizeof(T) + SLACK + unit - 1) / unit * unit;
            std::free(data_);
            size_ = 0;
            data_ = static_cast<T *>(std::aligned_alloc(unit, bytes));
            if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
            if (unit == HUGE) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
            size_ = size;
        }
        return data_;
    }
    T *data() const { return data_; }
    T &operator[](size_t i) const { return data_[i]; }

  private:
    static constexpr size_t HUGE = size_t(1) << 21, SLACK = 64;
    T *data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace
