#!/usr/bin/env python3
"""Five daemons in network namespaces, three of them witnesses, and a cut cable.

On the side with one witness nothing is promoted, and a rollback takes effect at once; on the side with two a promotion
goes through. When the cable is whole again all five must have the same heads within HEAL_S_MAX seconds, and what was
said before changes nothing when it is said again. Prints what it measured; exits with 1 if anything is otherwise.

Needs root and iproute2. Standard library only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hosts import Failure, Host, checkpoint, give_up

HEAL_S_MAX = 5.0
ROLLBACK_S_MAX = 1.0
STAGES = ("canary", "production")
POLICY = """ladder = ["canary", "production"]
[metric.eval_loss]
direction = "lower"
max = 3.0
max_regression = 0.02
"""


class Cables:
    """Two bridges, and namespaces that hang on one of them."""

    def __init__(self, count):
        self.tag = f"wlp{os.getpid():x}"
        self.bridges = [f"{self.tag}b{side}" for side in "ab"]
        self.spaces = [f"{self.tag}-{number}" for number in range(count)]
        self.cables = [f"{self.tag}v{number}" for number in range(count)]

    def __enter__(self):
        net = f"198.18.{os.getpid() % 250}"
        try:
            for bridge in self.bridges:
                ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
                ip("link", "set", bridge, "up")
            for number, (space, cable) in enumerate(zip(self.spaces, self.cables, strict=True)):
                ip("netns", "add", space)
                ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", cable, "master", self.bridges[0], "up")
                ip("-n", space, "address", "add", f"{net}.{number + 1}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def cut(self, numbers):
        """These hang on the other bridge from now on; none heals the cut."""
        for number, cable in enumerate(self.cables):
            ip("link", "set", cable, "master", self.bridges[1 if number in numbers else 0])

    def __exit__(self, *_):
        for space in self.spaces:
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            for pid in pids:
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        for link in [*self.cables, *self.bridges]:
            subprocess.run(["ip", "link", "del", link], capture_output=True)


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        give_up(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def report(directory, tag, shift):
    """A report over 60 documents, each worse than 2.0 by `shift` and a little of its own."""
    samples = [{"id": f"d{n}", "value": 2.0 + shift + (n % 7) / 1000} for n in range(60)]
    mean = sum(sample["value"] for sample in samples) / len(samples)
    path = directory / f"{tag}.json"
    path.write_text(json.dumps({"metrics": {"eval_loss": {"value": mean, "samples": samples}}}))
    return path


def exit_code(host, *arguments):
    done = subprocess.run(host.command(*arguments), env=host.environment(), capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def heads(host):
    # `rollout status` asks the other hosts too, which takes its time while they are cut off.
    logged = host.ask("log", "acme/bot", "--at", "now")
    return {head["stage"]: (head["tags"][0], head["statement"]) for head in logged["heads"]}


def versions(host):
    return {stage: tag for stage, (tag, _) in heads(host).items()}


class Fleet:
    def __init__(self, cables, directory, policy):
        self.hosts = [Host(directory / f"h{n}", f"h{n}", space) for n, space in enumerate(cables.spaces)]
        self.dir, self.policy = directory, policy
        first = self.hosts[0].start(mdns=True, loopback=False)
        for host in self.hosts[1:]:
            host.start(ticket=first.ask("invite")["ticket"], mdns=True, loopback=False)
            host.wait_connected()
        first.ask("keys", "grant", "witness", "h1", "h2")
        first.ask("policy", "set", "acme", policy)
        self.key = next((directory / "h0/keys").glob("*/admin.key"))

    def add(self, tag):
        source = self.dir / f"model-{tag}"
        checkpoint(source, 1 << 20, 1)
        self.hosts[0].ask("add", source, f"acme/bot:{tag}")

    def gate(self, tag, shift, against=None):
        first = self.hosts[0]
        verdict = self.dir / f"{tag}.dsse"
        said = ["--suite", "s1", "--ran-on", "here"]
        reports = {t: report(self.dir, t, s) for t, s in ([against] if against else []) + [(tag, shift)]}
        arguments = ["gate", f"acme/bot:{tag}", "--report", reports[tag], *said, "--policy", self.policy, "--out", verdict]
        if against:
            exit_code(first, "evidence", "add", f"acme/bot:{against[0]}", reports[against[0]], *said)
            arguments += ["--against", f"acme/bot:{against[0]}"]
        first.ask(*arguments)
        first.ask("statement", "import", verdict)
        return verdict

    def promote(self, host, tag, stage, *more):
        return exit_code(host, "promote", f"acme/bot:{tag}", "--to", stage, "--key", self.key, *more)

    def wait_heads(self, hosts, wanted, seconds=60):
        began = time.monotonic()
        for host in hosts:
            host.wait_for(f"heads {wanted}", lambda host=host: versions(host) == wanted, seconds)
        return time.monotonic() - began


def check(what, good, seen=""):
    print(f"{'ok    ' if good else 'FAILED'}  {what}{f': {seen}' if seen else ''}", flush=True)
    if not good:
        raise Failure(what)


def run(cables, directory, cut_s):
    policy = directory / "gate.toml"
    policy.write_text(POLICY)
    fleet = Fleet(cables, directory, policy)
    first = fleet.hosts[0]
    for tag in ("1.0.0", "1.1.0", "1.2.0", "1.3.0"):
        fleet.add(tag)
    verdict = fleet.gate("1.0.0", 0.0)
    for stage in STAGES:
        check(f"1.0.0 to {stage}", fleet.promote(first, "1.0.0", stage)[0] == 0)
    fleet.gate("1.1.0", -0.1, ("1.0.0", 0.0))
    for stage in STAGES:
        check(f"1.1.0 to {stage}", fleet.promote(first, "1.1.0", stage)[0] == 0)
    fleet.gate("1.2.0", -0.2, ("1.1.0", -0.1))
    fleet.gate("1.3.0", -0.3, ("1.1.0", -0.1))
    fleet.wait_heads(fleet.hosts, {stage: "1.1.0" for stage in STAGES})
    known = lambda host: host.row("acme/bot:1.3.0") and len(host.ask("evidence", "acme/bot:1.3.0")["verdicts"]) == 1
    for host in fleet.hosts:
        host.wait_for("hearing of the last verdict", lambda host=host: known(host))

    few, many = [fleet.hosts[0], fleet.hosts[3]], [fleet.hosts[n] for n in (1, 2, 4)]
    cables.cut({1, 2, 4})
    cut_at = time.monotonic()
    code, error = fleet.promote(first, "1.2.0", "canary", "--wait", "2")
    check("one witness of three promotes nothing", code == 6 and "of 2 cosignatures" in error, error.splitlines()[0])
    began = time.monotonic()
    code, error = fleet.promote(many[0], "1.3.0", "canary")
    check("two witnesses of three do", code == 0, f"{time.monotonic() - began:.2f} s {error}")
    began = time.monotonic()
    first.ask("rollback", "acme/bot", "--reason", "it answers nonsense")
    seconds = fleet.wait_heads(few, {"canary": "1.1.0", "production": "1.0.0"}, 10)
    check("a rollback needs no quorum", True, f"heard on its side after {time.monotonic() - began:.2f} s")
    check(f"within {ROLLBACK_S_MAX} s", seconds <= ROLLBACK_S_MAX, f"{seconds:.2f} s after the command's end")
    check("the other side has not heard of it", versions(many[0]) == {"canary": "1.3.0", "production": "1.1.0"})
    time.sleep(max(0.0, cut_s - (time.monotonic() - cut_at)))

    cables.cut(set())
    healed = time.monotonic()
    fleet.wait_heads(fleet.hosts, {"canary": "1.3.0", "production": "1.0.0"})
    seconds = time.monotonic() - healed
    statements = {json.dumps(heads(host), sort_keys=True) for host in fleet.hosts}
    check("all five have the same heads", len(statements) == 1, f"{seconds:.2f} s after healing, cut for {cut_s:.0f} s")
    check(f"within {HEAL_S_MAX} s", seconds <= HEAL_S_MAX, f"{seconds:.2f} s")
    for host in fleet.hosts:
        code, error = exit_code(host, "path", "acme/bot:1.1.0")
        check(f"{host.name} no longer opens what was rolled back", code == 5 and "rolled back" in error)
    before = heads(first)
    first.ask("statement", "import", verdict)
    code, error = fleet.promote(first, "1.1.0", "production", "--wait", "1")
    check("an old verdict brings nothing back", code == 5, error.splitlines()[0])
    check("what was said before changes nothing", heads(first) == before)
    print(json.dumps({"heal_s": round(seconds, 2), "cut_s": cut_s}))
    for host in fleet.hosts:
        host.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=float, default=15.0, metavar="SECONDS", help="how long the cable is cut")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        give_up("needs root and iproute2")
    directory = Path(tempfile.mkdtemp(prefix="wlp-"))
    try:
        with Cables(5) as cables:
            run(cables, directory, arguments.cut)
    except Failure as failure:
        sys.exit(f"partition: {failure}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
