#!/usr/bin/env python3
"""kill -9 in the middle of add, fetch and pull --to, with 5,000 small files and with one large one.

Sizes that CI has no time for: each operation is killed when about half of it is done, as the disk or the metrics tell,
and what comes after must be as if nothing had happened. Standard library only.
"""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hosts import GIB, MIB, Failure, Run, checkpoint, file_system, files_of
from sizes import small_files

SLOTS = 14  # SwarmConfig::downloads_max: what a kill may cost is one piece for each
PIECE_BYTES_MAX = MIB
# Small files are fetched again as a whole bundle of at most a piece; headers and proofs cannot be told apart.
REFETCH_BYTES_MAX = SLOTS * PIECE_BYTES_MAX + MIB


def size_below(directory):
    """Bytes on the disk below a directory that changes meanwhile."""
    total = 0
    for above, _, names in os.walk(directory, onerror=lambda _: None):
        for name in names:
            try:
                total += os.stat(os.path.join(above, name)).st_blocks * 512
            except OSError:
                pass
    return total


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


class Both(Run):
    def until(self, what, enough, command, seconds=600):
        """Waits until an operation is so far; false if it was over before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if command.poll() is not None:
                return False
            if enough():
                return True
            time.sleep(0.005)
        raise Failure(f"{what} does not get so far")

    def left(self, host, *places):
        return [str(path) for place in places for path in (host.data / place).rglob("*") if path.is_file()][:3]

    def case(self, name, source):
        files = files_of(source)
        total = sum(files.values())
        reference = f"kills/{name}:1.0.0"
        wanted = {path: sha256(source / path) for path in files}
        print(f"\n{name}: {len(files)} files, {total / 1e6:.0f} MB", flush=True)

        adding = self.a.begin("add", source, reference)
        half = self.until("add", lambda: size_below(self.a.data / "staging") > total / 2, adding)
        self.a.kill()
        adding.communicate(timeout=60)
        self.a.start()
        self.check("add was killed in its middle", half and adding.returncode != 0)
        self.check("nothing of it shows", self.a.row(reference) is None and not self.left(self.a, "staging", "partial"))
        self.a.ask("add", source, reference)
        self.check("the second attempt has it", self.a.row(reference)["complete"])
        self.b.wait_known(reference)

        before, killed = self.b.metric("weighlock_fetched_bytes_total"), 0
        fetched = 0
        for share in (0.3, 0.6):
            pulling = self.b.begin("pull", reference)
            wanted_bytes = max(total * share - killed, total * 0.05)
            half = self.until(
                "fetch", lambda: self.b.metric("weighlock_fetched_bytes_total") - before > wanted_bytes, pulling
            )
            fetched += self.b.metric("weighlock_fetched_bytes_total") - before
            self.b.kill()
            pulling.communicate(timeout=60)
            killed = fetched
            began = time.monotonic()
            self.b.start()
            up_s = time.monotonic() - began
            before = 0
            row = self.b.wait_known(reference)
            complete = ", all of it" if row["complete"] else ""
            self.check(f"fetch was killed after {share:.0%}", half,
                       f"{fetched / 1e6:.0f} MB were here{complete}; up again in {up_s:.1f} s")
            self.check("nothing by halves shows", not self.left(self.b, "staging", "views"))
        # The host that gives goes too, in the middle of the rest.
        pulling = self.b.begin("pull", reference)
        self.until("fetch", lambda: self.b.metric("weighlock_fetched_bytes_total") > total * 0.1, pulling)
        self.a.kill()
        time.sleep(1)
        self.a.start()
        pulling.communicate(timeout=900)
        self.check("the fetch outlives its source's death", pulling.returncode == 0)
        fetched += self.b.metric("weighlock_fetched_bytes_total")
        again = fetched - total
        self.check("each kill costs at most a piece a slot", again <= 3 * REFETCH_BYTES_MAX,
                   f"{again / MIB:.1f} MiB again over 3 kills")

        target = self.root / "out" / name
        writing = self.b.begin("pull", reference, "--to", target)
        half = self.until("pull --to", lambda: size_below(target.parent) > total / 2, writing)
        writing.kill()
        writing.communicate()
        shown = files_of(target) if target.exists() else {}
        self.check("pull --to was killed, and nothing by halves is at the target", half and not shown, len(shown))
        # What is left of it goes with the next one that comes a minute later.
        for path in target.parent.iterdir():
            os.utime(path, (time.time() - 120, time.time() - 120))
        self.b.ask("pull", reference, "--to", target)
        got = {path: sha256(target / path) for path in files_of(target)}
        self.check("SHA-256 of every file equals the original's", got == wanted)
        beside = [path.name for path in target.parent.iterdir() if path != target]
        self.check("nothing lies beside it", not beside, beside)
        left = self.left(self.b, "partial", "staging") + self.left(self.a, "partial", "staging")
        self.check("nothing is left over in the stores", not left, left)
        for host in (self.b, self.a):
            host.ask("rm", reference, "--force")
        shutil.rmtree(target)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--gib", type=float, default=2, help="size of the large file")
    options.add_argument("--files", type=int, default=5000, help="files of the other artifact")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--dir", help="where everything is kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    root = Path(tempfile.mkdtemp(prefix="weighlock-kills-", dir=options.dir))
    run = Both(root)
    print(f"file system: {file_system(root)}")

    def go():
        run.a.start()
        run.b.start(run.a.ask("invite")["ticket"])
        run.b.wait_connected()
        small_files(root / "many", options.files, random.Random(options.seed))
        run.case("many", root / "many")
        shutil.rmtree(root / "many")
        checkpoint(root / "large", int(options.gib * GIB), 1)
        run.case("large", root / "large")
        for host in (run.b, run.a):
            host.stop()
        run.check("both daemons stop on SIGTERM", True)

    return run.carry_out(go)


if __name__ == "__main__":
    sys.exit(main())
