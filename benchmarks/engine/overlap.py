"""Decode and prefill with kernels that start early, and other tries, by turns: python benchmarks/engine/overlap.py SECONDS BASE.

BASE is a folder with the files of engine/ as they were before.
"""
import os
os.environ["OMP_NUM_THREADS"] = "1"
import shutil, subprocess, sys, tempfile, time, glob
import numpy as np
START = time.perf_counter()
LIMIT = float(sys.argv[1])
ROOT = os.getcwd()
K = "engine/cuda/kernels/"
def swap(path, a, b):
    def go(root):
        s = open(f"{root}/{path}").read()
        assert a in s, (path, a)
        open(f"{root}/{path}", "w").write(s.replace(a, b))
    return go
def base(root):
    shutil.copytree(f"{sys.argv[2]}", root, dirs_exist_ok=True)
SIG = """        gdc_wait()
        gdc_launch_dependents()
"""
def early(root):
    swap(K + "overlap.py", SIG, "        gdc_launch_dependents()\n        gdc_wait()\n")(root)
def after(root):
    # products let the next kernel start once they have read what they multiply
    swap(K + "linear.py", "read_ahead, wait_for_previous", "read_ahead, start_next, wait_for_previous")(root)
    s = open(f"{root}/{K}overlap.py").read()
    s = s.replace("@triton.jit\ndef start_next", "@triton.jit\ndef wait_only():\n    if cuda_capability_geq(9):\n        gdc_wait()\n\n\n@triton.jit\ndef start_next")
    open(f"{root}/{K}overlap.py", "w").write(s)
    s = open(f"{root}/{K}linear.py").read()
    s = s.replace("start_next, wait_for_previous", "start_next, wait_only, wait_for_previous")
    i = s.index("def _read_weights_ahead"); j = s.index("def _product(")
    s = s[:i] + s[i:j].replace("wait_for_previous()", "wait_only()") + s[j:]
    s = s.replace("PRECISION)  # fmt: skip\n    if ROWS > _EARLY_ROWS", "PRECISION)  # fmt: skip\n    start_next()\n    if ROWS > _EARLY_ROWS")
    assert s.count("start_next()") == 3, s.count("start_next()")
    open(f"{root}/{K}linear.py", "w").write(s)
NOKV = swap(K + "attention.py", "_KEYS_AHEAD = 128", "_KEYS_AHEAD = 0")
NOFETCH = swap(K + "linear.py", "    elif tl.program_id(1) == 0:\n", "    elif tl.program_id(1) < 0:\n")
ERF = swap(K + "linear.py", "    if EXACT:\n", "    if True:\n")
def wide(root):
    s = open(f"{root}/{K}tiles.py").read()
    a, b = s.split("    4096: ", 1)
    open(f"{root}/{K}tiles.py", "w").write(a + "    4096: " + b.replace("Tiles(128, 128, 64, 8, 3)", "Tiles(128, 256, 64, 8, 3)", 1))
def noswap(root):
    swap(K + "packed_attention.py", "    _packed_attention[(heads, tiles)]", "    _packed_attention[(tiles, heads)]")(root)
    swap(K + "packed_attention.py", """    head = tl.program_id(0)
    b, tile = _tile_of(tl.program_id(1), counts""", """    head = tl.program_id(1)
    b, tile = _tile_of(tl.program_id(0), counts""")(root)
def nobias(root):
    swap(K + "linear.py", "    if bias is not None:\n        fetch_lines(bias + column)\n    if gain is not None:\n        read_ahead(gain + tl.arange(0, 1), K, K)\n    if shift is not None:\n        read_ahead(shift + tl.arange(0, 1), K, K)\n", "")(root)
VARIANTS = {"nobias": [nobias], "base": [base], "new": [], "nokv": [NOKV], "early": [early], "after": [after], "nofetch": [NOFETCH],
            "order": [noswap, ERF, wide], "erf": [ERF, wide], "wide": [wide], "erfnew": [ERF]}
WHAT_ALL = [(n, "decode-1") for n in ("base", "erfnew", "new", "nokv", "after", "nobias")]
WHAT_ALL += [(n, "decode-64") for n in ("base", "erfnew", "new", "nokv", "early", "nofetch", "nobias")]
WHAT_ALL += [(n, "decode-256") for n in ("base", "erfnew", "new", "nokv")]
WHAT_ALL += [(n, "decode-16") for n in ("base", "new", "nokv")]
WHAT_ALL += [(n, "prefill-1-128") for n in ("base", "order", "erf", "new")]
WHAT_ALL += [(n, "prefill-64-8192") for n in ("base", "order", "erf", "new")]
WHAT_ALL += [(n, "prefill-8-8000") for n in ("base", "new")] + [(n, "prefill-1-2000") for n in ("base", "new")]
WHAT_ALL += [("base", "host"), ("new", "host")]
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
if os.environ.get("OUT"):
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
