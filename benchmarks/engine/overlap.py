"""Decode by engines of several folders, by turns: python -m benchmarks.engine.overlap SECONDS TRIES [decode-1,decode-16]

TRIES has a folder for each, with its engine/; one is called base.
"""
import os
os.environ["OMP_NUM_THREADS"] = "1"
import shutil, subprocess, sys, tempfile, time, glob
import numpy as np
START = time.perf_counter()
LIMIT = float(sys.argv[1])
ROOT = os.getcwd()
K = "engine/cuda/kernels/"
V = sys.argv[2]
NAMES = sorted(os.listdir(V), key=lambda n: (n != "base", n))
VARIANTS = {n: [lambda root, n=n: shutil.copytree(f"{V}/{n}/engine", f"{root}/engine", dirs_exist_ok=True)] for n in NAMES}
WHAT_ALL = [(n, w) for w in (sys.argv[3] if len(sys.argv) > 3 else "decode-1,decode-16,decode-64,decode-256").split(",") for n in NAMES]
import torch, triton, triton.language, torch.profiler  # before the forks
class Proc:
    def __init__(self, pid, out):
        self.pid, self.out, self.returncode = pid, out, None
    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode
    def kill(self):
        if self.poll() is None: os.kill(self.pid, 9)
    def text(self):
        return open(self.out).read()
def start(name, what):
    out = f"{work}/{name}.{what}.out"
    pid = os.fork()
    if pid: return Proc(pid, out)
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1); os.dup2(fd, 2)
    sys.path[:] = [f"{work}/{name}"] + [p for p in sys.path if os.path.abspath(p or ".") not in (ROOT, f"{ROOT}/benchmarks/engine")]
    os.chdir(f"{work}/{name}")
    sys.argv = ["one.py", name, what, work]
    code = 1
    try:
        import runpy
        runpy.run_path(f"{ROOT}/benchmarks/engine/overlap_one.py", run_name="__main__")
        code = 0
    except BaseException:
        import traceback; traceback.print_exc()
    finally:
        sys.stdout.flush(); os._exit(code)
WHAT = WHAT_ALL[:4] if os.environ.get("STUB") else WHAT_ALL
work = tempfile.mkdtemp()
procs = {}
for name, changes in VARIANTS.items():
    root = f"{work}/{name}"
    os.makedirs(root)
    for each in ("engine", "model", "thoughtbubbles", "benchmarks", "terminal", "training"):
        shutil.copytree(f"{ROOT}/{each}", f"{root}/{each}", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        change(root)
for name, what in WHAT:
    procs[name, what] = start(name, what)
def ready():
    return len(glob.glob(f"{work}/*.ready"))
while time.perf_counter() - START < LIMIT * 0.72:
    if all(p.poll() is not None or os.path.exists(f"{work}/{n}.{w}.ready") for (n, w), p in procs.items()):
        break
    time.sleep(0.1)
print(f"# {ready()} of {len(WHAT)} ready after {time.perf_counter() - START:.0f} s: " + " ".join(f"{os.path.basename(f)[:-6]}:{open(f).read()}" for f in sorted(glob.glob(f"{work}/*.ready"))), flush=True)
for (n, w), p in procs.items():
    if p.poll() is None and not os.path.exists(f"{work}/{n}.{w}.ready"):
        p.kill()
open(f"{work}/go", "w").close()
while time.perf_counter() - START < LIMIT and any(p.poll() is None for p in procs.values()):
    time.sleep(0.05)
for (n, w), p in procs.items():
    p.kill()
    time.sleep(0.01); p.poll()
    out = p.text()
    lines = [l for l in out.strip().splitlines() if l.startswith("# profile")]
    for l in lines: print(l)
    if p.returncode: print(f"# {n} {w} rc {p.returncode}: {out.strip()[-600:]}")
if False:
    for f in glob.glob(f"{work}/*.host.txt") + glob.glob(f"{work}/*.out"): shutil.copy(f, os.environ["OUT"])
print(f"# done after {time.perf_counter() - START:.0f} s")
print("what             variant   ms              over base   as base")
for what in dict.fromkeys(w for _, w in WHAT):
    first = None
    for n, w in WHAT:
        if w != what or not os.path.exists(f"{work}/{n}.{w}.ms"): continue
        ms = [float(x) for x in open(f"{work}/{n}.{w}.ms").read().split()]
        t = np.load(f"{work}/{n}.{w}.npy")
        first = first or (min(ms), t)
        print(f"{what:16} {n:8} {min(ms):8.4f}..{max(ms):.4f}  {min(ms) / first[0]:8.3f}   {int((t == first[1]).sum())} of {t.size}")
