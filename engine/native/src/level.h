// The levels that step.cpp and drawing.cpp are compiled for, each with LEVEL its name.
#pragma once
#include <memory>

#include "interface.h"

#define JOIN(a, b) a##b
#define JOINED(a, b) JOIN(a, b)

class Step {
  public:
    virtual ~Step() = default;
    virtual void run(TbStep &step) = 0;
    virtual void draw(const TbDraws &draws) = 0;
    virtual size_t bytes() const = 0;
};

std::unique_ptr<Step> make_plain(const TbModel &);
#if defined(__x86_64__)
std::unique_ptr<Step> make_avx2(const TbModel &);
std::unique_ptr<Step> make_avx512(const TbModel &);
#if !defined(TB_WITHOUT_AMX)
std::unique_ptr<Step> make_amx(const TbModel &);
#endif
#endif
