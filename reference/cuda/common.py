"""What the parts of cuda.sh share: commands with a time limit and the card's peak memory, and results kept in a folder."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LTX = os.environ["LTX"]
DEVICE = os.environ["DEVICE"]  # gpu or cpu, as `ltx` calls them
TINY = os.environ["TINY"] == "1"
STATE = Path(os.environ["STATE"])


def card_memory():
    """Bytes in use on the card, or None without one."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def run(command, limit, environment=None):
    """Runs it: its standard output, seconds, and the most memory in use on the card meanwhile. Fails with its last words."""
    peak, over = [], threading.Event()

    def watch():
        while DEVICE == "gpu":
            peak.append(card_memory() or 0)
            if over.wait(0.25):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=limit, env=os.environ | (environment or {})
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {limit} s") from None
    finally:
        over.set()
        watcher.join()
    if done.returncode != 0:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise RuntimeError(" / ".join(words[-3:]) or f"exit code {done.returncode}")
    return done.stdout, time.perf_counter() - start, max(peak, default=0) or None


def kept(name, make):
    """The result of that name: from the folder if it is there, made and kept otherwise; a failure is kept as its words."""
    file = STATE / f"{name}.json"
    if file.exists() and "error" not in (result := json.loads(file.read_text())):
        return result
    try:
        result = make()
    except RuntimeError as error:
        result = {"error": str(error)}
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(result))
    temporary.rename(file)
    return result
