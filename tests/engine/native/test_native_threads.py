"""The library's threads: how many, and what becomes of them in a fork, at exit and where the system gives no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thoughtbubbles.engine.native.library import Library

BEGIN = """
import os, sys, threading, time
import torch
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer, set_threads

def make():
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257, block_size=64, max_block_size=128, n_layer=3, n_head=2, n_embd=32, fork_layers=(1,)
    )
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    settings = EngineConfig(max_batch_size=4, page_size=4, cache_bytes=1 << 22, executor="native")
    return Engine(Thoughtbubbles(config).eval(), tokenizer, settings)

def generate(engine, tokens=8):
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    return engine.generate([[1, 2, 3]] * 4, params)[0].token_ids

def threads():
    return len(os.listdir("/proc/self/task"))

"""


def run(script: str) -> str:
    """Return what a script prints in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


on_linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this processor lacks /proc")


@on_linux
def test_a_forked_process_has_threads_of_its_own(library: Library) -> None:
    """A fork copies the engine, but none of its threads: the child would wait for them, in a step and in freeing it."""
    printed = run("""
set_threads(3)
engine = make()
wanted = generate(engine)
child = os.fork()
if not child:
    before = threads()
    same = generate(engine) == wanted
    started = threads() - before
    del engine
    print(same, started, flush=True)
    os._exit(0)  # torch's own threads do not survive an orderly exit
for _ in range(600):
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
assert status == 0, status
print(generate(engine) == wanted)
""")
    assert printed.split() == ["True", "2", "True"]


def test_a_process_may_end_while_a_thread_generates(library: Library) -> None:
    """The memory of a step that is being computed is not freed at exit."""
    run("""
set_threads(2)
engine, begun = make(), threading.Event()

def serve():
    while True:
        generate(engine, 50)
        begun.set()

threading.Thread(target=serve, daemon=True).start()
begun.wait(60)
from thoughtbubbles.engine.native.library import Library
Library.destroy = lambda self, handle: os.write(2, b"freed at exit") and os._exit(1)
""")


@on_linux
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer ends a process short of memory"
)
def test_fewer_threads_serve_where_the_system_gives_no_more(library: Library) -> None:
    """Else an exception would leave the pool with threads that run, which ends the process."""
    assert run("""
import resource
set_threads(1)
engine = make()
wanted = generate(engine)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * os.sysconf("SC_PAGE_SIZE") + (400 << 20)
before = threads()
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
set_threads(200)
print(generate(engine) == wanted, 0 < threads() - before < 199)
""").split() == ["True", "True"]


@on_linux
def test_set_threads_changes_an_engine_that_is_there(library: Library) -> None:
    assert run("""
set_threads(1)
engine = make()
wanted, numbers = generate(engine), []
before = threads()
for number in (3, 1, 2):
    set_threads(number)
    assert generate(engine) == wanted
    numbers.append(threads() - before)
print(*numbers)
""").split() == ["2", "0", "1"]


def test_engines_share_a_process_and_change_threads(library: Library) -> None:
    assert run("""
set_threads(2)
engines, ids = [make(), make()], []
for turn in range(6):
    thread = threading.Thread(target=lambda: ids.append(generate(engines[turn % 2])))
    thread.start()
    thread.join()
print(len(ids), len(set(map(tuple, ids))))
""").split() == ["6", "1"]
