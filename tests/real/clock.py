#!/usr/bin/env python3
"""Sets the clock of a running daemon back by an hour: leases, collection, statements, joins and the audit log stay right.

The daemon runs under libfaketime (package `faketime`), which reads its offset from a file; the machine's clock is left
alone. Standard library beside that.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from hosts import MIB, Host, Run, checkpoint, file_system, files_of, give_up

import weighlock

LIBRARIES = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
]


class Skewed(Host):
    """A host whose daemon, and commands, have a clock of their own."""

    def __init__(self, directory, name, library):
        super().__init__(directory, name)
        self.library = library
        self.offset = self.dir / "offset"
        self.offset.write_text("+0\n")

    def environment(self, **more):
        fake = {
            "LD_PRELOAD": self.library,
            "FAKETIME_TIMESTAMP_FILE": str(self.offset),
            "FAKETIME_CACHE_DURATION": "1",
            # Sleeps and timeouts, and what the disk says, are not of that clock.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        return super().environment(**fake, **more)

    def set_clock(self, offset):
        self.offset.write_text(offset + "\n")
        time.sleep(2)


class Skew(Run):
    def __init__(self, root, library):
        self.library = library
        super().__init__(root)

    def host(self, name, *kind):
        return super().host(name, *((Skewed, self.library) if name == "a" else kind))

    def model(self, number):
        source = self.root / f"source-{number}"
        checkpoint(source, 4 * MIB, 1)
        return source, f"clock/model:{number}.0.0"

    def gone(self, host, *arguments):
        return [row["name"] for row in host.ask("gc", *arguments)["gone"]]

    def go(self):
        a, b = self.a, self.b
        b.start()
        a.start(b.ask("invite")["ticket"])
        a.wait_connected()
        sources = [self.model(number) for number in range(1, 6)]
        for source, reference in sources:
            b.ask("add", source, reference)
        names = [reference for _, reference in sources]
        for reference in names:
            a.wait_known(reference)
        print("\nbefore: the clock is right", flush=True)
        held = weighlock.open(names[0], socket=a.socket)
        viewed = Path(a.ask("path", names[1])["path"])
        self.check("one is open, one is a directory, both are here", viewed.is_dir() and a.row(names[0])["complete"])

        print("\nthe clock of a running daemon goes back by an hour", flush=True)
        a.set_clock("-1h")
        stays = self.gone(a, "--all", "--dry-run")
        self.check("nothing in use would go", names[0] not in stays and names[1] not in stays, stays)
        a.ask("pull", names[2])
        told = a.ask("gc", "--all")
        gone, kept = [row["name"] for row in told["gone"]], {row["name"]: row["because"] for row in told["kept"]}
        self.check("what nobody has open may go all the same", gone == [names[2]], f"{gone}; kept: {kept}")
        for file in held.walk():
            wanted = (sources[0][0] / file.path).read_bytes()
            self.check(f"what is open reads as before: {file.path}", file.read() == wanted)
        self.check("the directory is whole", files_of(viewed).keys() >= files_of(sources[1][0]).keys())
        held.close()
        weighlock.open(names[0], socket=a.socket).close()
        self.check("it opens again", a.row(names[0])["complete"])

        print("\nstatements", flush=True)
        source, reference = self.model(9)
        a.ask("add", source, reference)
        b.wait_known(reference)
        self.check("what it publishes with the old time counts elsewhere", b.row(reference) is not None)
        b.ask("pull", reference)
        source, later = self.model(10)
        b.ask("add", source, later)
        a.wait_known(later)
        self.check("what others publish an hour ahead counts here", a.row(later)["copies_elsewhere"] >= 1)
        status = a.ask("status")
        self.check("it takes itself for a member, and no alarm is raised", status["member"] and not status["alarms"],
                   status["alarms"])
        c = self.host("c")
        c.start(b.ask("invite")["ticket"])
        c.wait_connected()
        a.wait_for("hearing of a host that joins in its future", lambda: [
            row for row in a.ask("peers")["items"] if row["name"] == "c" and row["connected"]
        ])
        self.check("a host that joined in its future is let in", True)

        print("\nthe audit log", flush=True)
        exported = self.root / "audit.jsonl"
        a.ask("audit", "export", "--to", exported)
        a.ask("audit", "verify", exported)
        self.check("the log verifies over the step", True)

        print("\na restart, and the clock is right again", flush=True)
        a.stop()
        a.start()
        self.check("it starts with the clock behind its own store", a.ask("status")["member"])
        a.set_clock("+0")
        a.wait_known(names[4])
        a.ask("pull", names[4])
        self.check("it fetches", a.row(names[4])["complete"])
        a.ask("audit", "export", "--to", self.root / "audit2.jsonl")
        a.ask("audit", "verify", self.root / "audit2.jsonl")
        self.check("the log verifies still", True)
        panics = sum((host.dir / "log").read_text(errors="replace").count("panicked") for host in (a, b, c))
        self.check("nothing panicked", not panics)
        for host in (c, a, b):
            host.stop()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dir", help="where everything is kept meanwhile (default: the temporary directory)")
    options = options.parse_args()
    library = next((path for path in LIBRARIES if Path(path).exists()), None)
    if not library:
        give_up("libfaketime is needed: apt-get install faketime")
    root = Path(tempfile.mkdtemp(prefix="weighlock-clock-", dir=options.dir))
    print(f"file system: {file_system(root)}; {library}")
    run = Skew(root, library)
    return run.carry_out(run.go)


if __name__ == "__main__":
    sys.exit(main())
