#include "threads.h"

#include <system_error>

namespace {
constexpr int SPINS = 20000;  // about a millisecond: a step's phases, and mostly the steps, follow each other faster

void pause_or_yield(int turn) {
    if (turn % 64 == 63) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}
}  // namespace

void Pool::resize(int threads) {
    if (threads == wanted_) return;
    stop();
    wanted_ = threads;
    workers_.reserve(threads);
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i, phase = phase_.load()] { work(i, phase); });
    } catch (const std::system_error &) {  // no more threads: those that there are do the work
    }
}

void Pool::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        phase_++;
    }
    wake_.notify_all();
    for (auto &worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
}

void Pool::start(int parts, Call call, const void *context) {
    parts_ = parts;
    call_ = call;
    context_ = context;
    next_ = 0;
    busy_ = int(workers_.size());
    {
        std::lock_guard<std::mutex> lock(mutex_);
        phase_++;
    }
    wake_.notify_all();
    share(0);
    for (int turn = 0; busy_.load(std::memory_order_acquire); turn++) pause_or_yield(turn);
}

void Pool::share(int thread) {
    for (int part; (part = next_.fetch_add(1)) < parts_;) call_(context_, part, thread);
}

void Pool::work(int thread, unsigned seen) {
    for (;; seen++) {
        for (int turn = 0; turn < SPINS && phase_.load(std::memory_order_acquire) == seen; turn++) pause_or_yield(turn);
        if (phase_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return phase_.load() != seen; });
        }
        if (stop_) return;
        share(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}
