// The thread pool under TSan (make native-sanitize): many short phases, each of which writes what the next one reads.
#include <cstdio>
#include <vector>

#include "threads.h"

int main() {
    Pool pool;
    for (int threads : {1, 2, 3, 4, 5, 2, 1, 3}) {
        pool.resize(threads);
        std::vector<long> from(64, 1), to(64, 0);
        for (int phase = 0; phase < 2000; phase++) {
            const int parts = 1 + phase % 64;
            pool.run(parts, [&](int part, int) { to[part] = from[63 - part] + part; });
            std::swap(from, to);
        }
        long total = 0;
        std::vector<long> seen(threads, 0);
        pool.run(1000, [&](int, int thread) { seen[thread]++; });
        for (long n : seen) total += n;
        if (total != 1000) return std::printf("%d threads ran %ld of 1000 parts\n", threads, total), 1;
    }
    std::puts("no race");
}
