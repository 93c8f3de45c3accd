// Draws of tokens: what step.cpp needs of drawing.cpp, at its own level.
#pragma once
#include "interface.h"
#include "level.h"

// Memory that one thread draws in.
struct DrawMemory {
    float *values, *some;  // (V + SPARE)
    int32_t *marks;        // (V), zeros between two rows
    static constexpr int SPARE = 16;  // lanes of the widest vector
};

#define DRAW JOINED(draw_, LEVEL)

// Draws row l, whose logits are `size` numbers.
void DRAW(const TbDraws &draws, int l, int size, DrawMemory memory);
