// A few threads that share out the parts of one phase after another, and spin shortly in between.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class Pool {
  public:
    ~Pool() { stop(); }
    // So many threads from now on, the caller's among them; fewer where the system gives no more.
    void resize(int threads);
    int size() const { return 1 + int(workers_.size()); }

    // Calls body(part, thread) for each part, on any thread; returns when all are done.
    template <class Body> void run(int parts, const Body &body) {
        if (workers_.empty() || parts <= 1) {
            for (int part = 0; part < parts; part++) body(part, 0);
            return;
        }
        start(parts, [](const void *context, int part, int thread) { (*static_cast<const Body *>(context))(part, thread); },
              &body);
    }

  private:
    using Call = void (*)(const void *, int, int);
    void start(int parts, Call call, const void *context);
    void stop();
    void work(int thread, unsigned seen);
    void share(int thread);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> phase_{0};
    std::atomic<int> next_{0}, busy_{0};
    std::atomic<bool> stop_{false};
    int wanted_ = 1, parts_ = 0;
    Call call_ = nullptr;
    const void *context_ = nullptr;
};
