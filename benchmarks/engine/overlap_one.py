"""One try of benchmarks/engine/overlap.py: compile, wait for its turn, measure, and save tokens."""
import fcntl, os, statistics, sys, time
import numpy as np
import torch
START = time.perf_counter()
name, what, folder = sys.argv[1:4]
import thoughtbubbles.engine as _e
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cuda import forward as fw
from thoughtbubbles.engine.cuda.compiling import compile_launched
from thoughtbubbles.engine.cuda.decode import DecodeStep
from thoughtbubbles.engine.cuda.executor import make_device_sampler
from thoughtbubbles.engine.cuda.forward import DeviceForward
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.portable.forward import Chunk, ForkTally
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.model import Selection
PROMPT, NEW, RUNS = 128, 128, 2
DEV = torch.device(os.environ.get("DEV", "cuda"))
GPU = DEV.type == "cuda"

def made(batch, tokens=512):
    model = random_model(tokens, str(DEV), torch.bfloat16)
    cache = ForkCache(model.config, max_tokens=tokens, total_bytes=batch * (1 << 27 if tokens > 512 else 20_000_000 if batch >= 256 else 1 << 25), page_size=16,
                      like=model.transformer.wte.weight, requests=batch, retain=False)
    return model, cache, make_device_sampler(model, cache, Sampler(numbered_tokens(model.config.vocab_size)))

def ready(step):
    if GPU:
        compile_launched(step.prepare, DEV)
        step.capture(torch.cuda.Stream())
    else:
        step.prepare()

class Decode:
    def __init__(self, batch):
        self.batch = batch
        self.model, self.cache, self.sampler = made(batch)
        lanes, columns = self.cache.ledger.table.shape
        self.lanes = Lanes.zeros(DEV, L=lanes, G=len(self.cache.segments), P=columns)
        begin = [*self.cache.ledger.begin.tolist(), columns]
        generator = torch.Generator().manual_seed(1)
        for i, pages in enumerate(self.cache.segments):
            wide = min(begin[i + 1] - begin[i], (2 if i else 1) * 16 + 2)
            assert lanes * wide * pages.page_size <= pages.keys[0].shape[1], (i, lanes, wide, pages.keys.shape)
            self.lanes.table[:, begin[i]:begin[i] + wide] = torch.randperm(lanes * wide, generator=generator).int().view(lanes, wide).to(DEV)
        self.step = DecodeStep(self.model, self.cache, self.lanes, self.sampler, batch_size=batch)
        self.step.plain = (True,)
        ready(self.step)
    def once(self):
        lanes, step = self.lanes, self.step
        step.lane.copy_(torch.arange(self.batch, dtype=torch.int32))
        lanes.tokens.zero_(); lanes.streams.zero_(); lanes.kappa.fill_(self.model.config.max_block_size)
        self.sampler.state.token.copy_((torch.arange(len(self.sampler.state.token)) * 7919 + 11) % 50000)
        events, out = [], []
        for _ in range(PROMPT + NEW):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); step.run(plain=True); b.record()
            events.append((a, b)); out.append(step.output.clone())
        torch.cuda.synchronize()
        tokens = np.array([step.read(o.cpu().numpy())[1] for o in out])
        return statistics.mean(sorted(a.elapsed_time(b) for a, b in events[PROMPT:])[8:-8]), tokens

class Prefill:
    def __init__(self, batch, size):
        # batch prompts of size / batch tokens, with as many slots as an engine of 64 has
        self.model, self.cache, self.sampler = made(8 if size // batch > 500 else 64, 2048 if size // batch > 500 else 512)
        fw.TWICE = ()
        self.forward = DeviceForward(self.model, self.cache, ForkTally(), sampler=self.sampler, sizes=(size,))
        step = self.forward._steps[0]
        whole = type(step)._launches.fget(step)
        self.names = ("begin", "end", "plain")
        type(step)._launches = property(lambda s: {n: l for n, l in whole.items() if n in self.names})
        ready(step)
        ids = torch.randint(256, 50000, (batch, size // batch), generator=torch.Generator().manual_seed(2)).tolist()
        selection = Selection.of(self.model.config, "causal")
        chunks = [Chunk(each, self.cache.open(selection), selection, draws=True) for each in ids]
        prefill = self.forward.launch(chunks, lambda: True)
        extended = prefill.land()
        first = prefill.drawn()[0]
        self.tokens = np.array([*first, *extended.counts.tolist()])
        self.hidden = extended.x.clone()
        self.step = step
    def once(self):
        events = []
        for _ in range(24):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(); self.step.run(); self.step.draw(plain=True); b.record()
            torch.cuda.synchronize()
            events.append((a, b))
        x, _ = self.step.streams(len(self.hidden))
        same = int((x == self.hidden).all())
        return statistics.median(a.elapsed_time(b) for a, b in events[4:]), np.append(np.append(self.tokens, self.step.wait()[:1]), same)

def plain_only():
    from thoughtbubbles.engine.cuda.prefill import PrefillStep
    whole = PrefillStep._launches
    PrefillStep._launches = property(lambda s: {n: l for n, l in whole.fget(s).items() if n != "any"})

class Host:
    """Where the host's time goes for one prompt of 128 in an engine."""
    def __init__(self):
        from thoughtbubbles.engine import Engine, EngineConfig
        from thoughtbubbles.engine.cuda import decode_batch
        import thoughtbubbles.engine.device as device
        plain_only()
        DeviceForward.__init__.__kwdefaults__["sizes"] = (128,)
        decode_batch.prepare_steps = lambda *a: None
        device.warm_up = lambda executor, *a: executor.prepare()
        model = random_model(2048, str(DEV), torch.bfloat16)
        import gc
        self.engine = Engine(model, numbered_tokens(model.config.vocab_size), EngineConfig(
            max_batch_size=64, cache_bytes=(2 << 30) if GPU else 1 << 24, prefix_caching=False, max_prefill_tokens=8192))
        gc.freeze()
        self.times = {}
        for _ in range(3):
            self.prompt()
    def prompt(self):
        from thoughtbubbles.engine import SamplingParams
        ids = torch.randint(256, model_vocab(self.engine), (128,)).tolist()
        self.engine.add("a", ids, SamplingParams(max_tokens=1, ignore_eos=True, temperature=0))
        torch.cuda.synchronize()
        start = time.perf_counter()
        while self.engine.has_work:
            self.engine.step()
        return time.perf_counter() - start
    def timed(self, holder, name):
        inner = getattr(holder, name)
        def call(*a, **k):
            start = time.perf_counter()
            try:
                return inner(*a, **k)
            finally:
                self.times.setdefault(name, []).append(time.perf_counter() - start)
        object.__setattr__(holder, name, call)
    def once(self):
        whole = [self.prompt() for _ in range(60)]
        plain = 1e3 * statistics.median(whole)
        paged = self.engine.executor.paged
        step = paged.forward._steps[0]
        for holder, names in ((self.engine.scheduler, ("schedule", "schedule_rest", "admit")), (self.engine, ("_report", "_step")),
                              (paged, ("launch", "land", "_drawn")),
                              (paged.forward, ("_take", "_idle_step", "_write", "_record")),
                              (paged.sampler, ("assign",)), (step, ("run", "_replay", "draw", "wait_for_streams", "wait", "write", "streams")),
                              (self.engine.cache, ("allocate", "write_ids", "open"))):
            for name in names:
                if not hasattr(getattr(holder, name), "__closure__") or True:
                    self.timed(holder, name)
        again = [self.prompt() for _ in range(30)]
        print(f"# profile host {name_}: prompt {plain:.3f} ms, with clocks {1e3 * statistics.median(again):.3f} ms; us each, calls: "
              + ", ".join(f"{n} {1e6 * statistics.median(t):.0f} x{len(t) // 30}" for n, t in self.times.items()))
        import cProfile, pstats, io
        prof = cProfile.Profile()
        for _ in range(20):
            prof.enable(); self.prompt(); prof.disable()
        out = io.StringIO()
        pstats.Stats(prof, stream=out).sort_stats("tottime").print_stats(28)
        open(f"{folder}/{name_}.host.txt", "w").write(out.getvalue())
        for name2 in list(self.times): self.times.pop(name2)
        return plain, np.zeros(1)

def model_vocab(engine):
    return engine.model.config.vocab_size - 1

name_ = name
torch.cuda.init()
with torch.inference_mode():
    kind, *numbers = what.split("-")
    bench = Host() if kind == "host" else Decode(int(numbers[0])) if kind == "decode" else Prefill(int(numbers[0]), int(numbers[1]))
    torch.cuda.synchronize()
    open(f"{folder}/{name}.{what}.ready", "w").write(f"{time.perf_counter() - START:.0f}")
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.02)
    results, tokens = [], None
    for run in range((RUNS + 1 if kind != 'host' else 1)):
        with open(f"{folder}/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            took, tokens = bench.once()
        if run or kind == 'host':
            results.append(took)
        time.sleep(0.05)
    if os.environ.get("PROFILE") == f"{name}.{what}":
        from torch.profiler import ProfilerActivity, profile
        with open(f"{folder}/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                bench.once()
        n = PROMPT + NEW if kind == "decode" else 24
        rows = sorted(seen.key_averages(), key=lambda r: -r.self_device_time_total)[:12]
        print(f"# profile {name} {what}: " + ", ".join(f"{r.key[:24]} {r.count / n:.0f}x {r.self_device_time_total / n:.1f}" for r in rows))
np.save(f"{folder}/{name}.{what}.npy", tokens)
open(f"{folder}/{name}.{what}.ms", "w").write(" ".join(f"{r:.4f}" for r in results))
