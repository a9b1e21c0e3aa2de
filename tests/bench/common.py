"""What the benchmarks share: random files, other people's programs measured, medians, the last line."""

import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from hosts import GIB, MIB, give_up, rate  # noqa: E402


def need(program, package):
    """Path of a program, or the end of the script with the name of what is missing."""
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not found:
        give_up(f"{program} is not installed (on Debian: apt-get install {package})")
    return found


def random_file(path, size):
    """Bytes that nothing can compress or deduplicate, left in the page cache."""
    with open(path, "wb") as out:
        left = size
        while left:
            step = min(left, 16 * MIB)
            out.write(os.urandom(step))
            left -= step


def warm(paths):
    """Reads files once, so that they are in the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(4 * MIB)
            while file.readinto(buffer):
                pass


def timed(command):
    """Seconds and CPU seconds of a program that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def synced(path):
    """Seconds to bring a file that was just written to the disk."""
    began = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.monotonic() - began


def settle(written_bytes):
    """Makes cases alike: the disk at rest, and as much free memory as a case will write already touched.

    A virtual machine pays for the first touch of each page, which would favour whichever case comes second.
    """
    os.sync()
    with mmap.mmap(-1, written_bytes + written_bytes // 8) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


def medians(passes):
    """Median of each figure over the passes."""
    return {key: round(statistics.median(each[key] for each in passes), 3) for key in passes[0]}


def spread(passes, key):
    values = [each[key] for each in passes]
    return f"{min(values):.2f}-{max(values):.2f}"


def line(label, passes, seconds="seconds", rates=None, cpu=None):
    """One line of the table that people read: medians, and the spread of the seconds."""
    middle = medians(passes)
    shown = [f"{label:34} {middle[seconds]:9.2f} {spread(passes, seconds):>14}"]
    shown += [f"{middle[rates]:6.0f}" if rates else " " * 6, f"{middle[cpu]:10.2f}" if cpu else ""]
    print(" ".join(shown).rstrip())


def head():
    """The line above those of `line`."""
    print(f"{'case':34} {'seconds':>9} {'min-max':>14} {'MB/s':>6} {'CPU s/GiB':>10}")


def finish(result):
    """The last line: one JSON object."""
    print(json.dumps(result))


__all__ = ["GIB", "MIB", "finish", "give_up", "head", "line", "medians", "need", "random_file", "rate", "settle",
           "synced", "timed", "warm"]
