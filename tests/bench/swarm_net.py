"""Network namespaces on a bridge, each behind a link of a given rate, and what such a link really carries.

Run as a program inside a namespace it is one end of that measurement; see `serve`.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PREFIX = "wlsw"
BURST = "256kb"
LATENCY = "20ms"
PORT = 7600
MTU_BYTES = 1500
# The first part of a measurement is left out: the buckets of the shaper are full when it starts.
SKIP_S = 0.5
UDP_PAYLOAD_BYTES = 1452
REPLY_S_MAX = 30


class NetworkError(Exception):
    """A command that sets up namespaces failed, or a measurement did."""


def ip(*arguments):
    done = subprocess.run(["ip", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"ip {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def missing():
    """Programs that are needed and not there."""
    return [program for program in ("ip", "tc") if not shutil.which(program)]


def alive(pid):
    return Path(f"/proc/{pid}").exists()


def remove_leftovers(prefix=PREFIX):
    """Removes namespaces, their processes and bridges of earlier runs that were killed before they could clean up."""
    spaces = [entry.name for entry in Path("/run/netns").glob(f"{prefix}*-*")]
    bridges = [entry.name for entry in Path("/sys/class/net").glob(f"{prefix}*-br")]
    for name in spaces + bridges:
        number = name.removeprefix(prefix).split("-")[0]
        try:
            owner = int(number, 16)
        except ValueError:
            continue
        if alive(owner):
            continue
        if name in spaces:
            delete_space(name)
        else:
            subprocess.run(["ip", "link", "del", name], capture_output=True)


def delete_space(name):
    """Ends what still runs in a namespace and removes it; its end of the cable takes the other one with it."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    for pid in pids:
        subprocess.run(["kill", "-9", pid], capture_output=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Network:
    """A bridge and `hosts` namespaces, each on a veth pair shaped by tbf in both directions. Gone at the end."""

    def __init__(self, hosts, mbit):
        self.mbit = mbit
        self.tag = f"{PREFIX}{os.getpid():x}"
        self.bridge = self.tag + "-br"
        self.spaces = [f"{self.tag}-{number}" for number in range(hosts)]
        self.cables = [f"{self.tag}v{number}" for number in range(hosts)]
        # A /24 of the benchmark range (RFC 2544), which nobody routes.
        net = f"198.19.{os.getpid() % 250}"
        self.addresses = [f"{net}.{number + 1}" for number in range(hosts)]
        self.probes = []

    def __enter__(self):
        remove_leftovers()
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("link", "set", self.bridge, "type", "bridge", "mcast_snooping", "0")
            ip("link", "set", self.bridge, "up")
            for space, cable, address in zip(self.spaces, self.cables, self.addresses, strict=True):
                ip("netns", "add", space)
                ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", cable, "master", self.bridge, "up")
                ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", "eth0", "up")
                ip("-n", space, "route", "add", "default", "dev", "eth0")
                self.shape([], cable)
                self.shape(["-n", space], "eth0")
        except BaseException:
            self.__exit__()
            raise
        return self

    def shape(self, where, device):
        tc = ["tc", *where, "qdisc", "add", "dev", device, "root", "tbf"]
        tc += ["rate", f"{self.mbit}mbit", "burst", BURST, "latency", LATENCY]
        done = subprocess.run(tc, capture_output=True, text=True)
        if done.returncode:
            raise NetworkError(f"{' '.join(tc)}: {done.stderr.strip()}")

    def __exit__(self, *_):
        self.stop_probes()
        for space, cable in zip(self.spaces, self.cables, strict=True):
            delete_space(space)
            subprocess.run(["ip", "link", "del", cable], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def inside(self, number, *command):
        """A command line that runs `command` in a namespace."""
        return ["ip", "netns", "exec", self.spaces[number], *map(str, command)]

    def counted(self, number):
        """Bytes that a host's link carried from it and to it so far, and packets that the link dropped.

        As the shaper counts them: the interface counts a train of segments as one packet with one header.
        """
        rows = []
        for where, device in ((["-n", self.spaces[number]], "eth0"), ([], self.cables[number])):
            command = ["tc", *where, "-s", "-j", "qdisc", "show", "dev", device, "root"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
            rows.append(json.loads(done.stdout)[0])
        sent, received = rows
        return {"sent": sent["bytes"], "received": received["bytes"], "drops": sent["drops"] + received["drops"]}

    def counted_all(self):
        """`counted` of the first host, which seeds, and the sums of all others."""
        each = [self.counted(number) for number in range(len(self.spaces))]
        return {
            "seed_sent": each[0]["sent"],
            "received": sum(one["received"] for one in each[1:]),
            "drops": sum(one["drops"] for one in each),
        }

    def start_probes(self):
        for number in range(len(self.spaces)):
            child = subprocess.Popen(
                self.inside(number, sys.executable, Path(__file__).resolve()),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )
            self.probes.append(child)
        for child in self.probes:
            if child.stdout.readline().strip() != "ready":
                raise NetworkError("a probe did not start")

    def stop_probes(self):
        for child in self.probes:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        self.probes = []

    def goodput(self, kind, pairs, seconds):
        """Mbit/s of payload that arrive over each of `pairs` (from, to), all of them at once. `kind`: tcp, udp."""
        for source, sink in pairs:
            order = {"kind": kind, "to": self.addresses[sink], "seconds": seconds + SKIP_S}
            print(json.dumps(order), file=self.probes[source].stdin, flush=True)
        results = []
        for source, _ in pairs:
            answer = json.loads(self.probes[source].stdout.readline() or "{}")
            if "mbit" not in answer:
                raise NetworkError(f"a measurement failed: {answer.get('error', 'the probe ended')}")
            results.append(answer["mbit"])
        return results

    def measure(self, seconds):
        """What one pair carries by TCP and UDP, both ways in turn, and a ring of all hosts at once by TCP."""
        self.start_probes()
        try:
            last = len(self.spaces) - 1
            each = {
                kind: [self.goodput(kind, [pair], seconds)[0] for pair in ((0, last), (last, 0))]
                for kind in ("tcp", "udp")
            }
            ring = self.goodput("tcp", [(n, (n + 1) % (last + 1)) for n in range(last + 1)], seconds)
        finally:
            self.stop_probes()
        return {
            "tcp_mbit": statistics.mean(each["tcp"]),
            "udp_mbit": statistics.mean(each["udp"]),
            "ring_mbit_min": min(ring),
        }


class Count:
    """Bytes that arrive, from SKIP_S after the first one on."""

    def __init__(self):
        self.first = self.began = self.last = None
        self.bytes = 0

    def add(self, count):
        now = time.monotonic()
        if self.first is None:
            self.first = now
        elif self.began is None:
            if now - self.first >= SKIP_S:
                self.began = now
        else:
            self.bytes += count
            self.last = now

    def mbit(self):
        return self.bytes * 8 / 1e6 / (self.last - self.began) if self.bytes else 0.0


def receive(control):
    """Serves one measurement: a line that says of what kind, then the bytes, then the result back."""
    count, stop = Count(), threading.Event()
    with control:
        kind = read_line(control)
        if kind == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("0.0.0.0", 0))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                sock.settimeout(0.2)
                control.sendall(f"{sock.getsockname()[1]}\n".encode())

                def drain():
                    while not stop.is_set():
                        try:
                            count.add(len(sock.recv(65536)))
                        except TimeoutError:
                            pass

                thread = threading.Thread(target=drain)
                thread.start()
                control.recv(1)
                stop.set()
                thread.join()
        else:
            buffer = bytearray(1 << 18)
            while got := control.recv_into(buffer):
                count.add(got)
        control.sendall(json.dumps({"mbit": count.mbit()}).encode() + b"\n")


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(1)
        if not part:
            raise OSError("the other side ended")
        line += part
    return line.decode().strip()


def send(order):
    """One measurement from this end: Mbit/s as the other end saw them."""
    chunk = os.urandom(1 << 16)
    with socket.create_connection((order["to"], PORT), timeout=REPLY_S_MAX) as control:
        control.sendall(f"{order['kind']}\n".encode())
        if order["kind"] == "udp":
            port = int(read_line(control))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((order["to"], port))
                until = time.monotonic() + order["seconds"]
                while time.monotonic() < until:
                    for _ in range(32):
                        sock.send(chunk[:UDP_PAYLOAD_BYTES])
        else:
            until = time.monotonic() + order["seconds"]
            while time.monotonic() < until:
                control.sendall(chunk)
        control.shutdown(socket.SHUT_WR)
        return json.loads(read_line(control))


def serve():
    """Accepts measurements from other hosts, and starts those that lines on the standard input order."""
    listener = socket.create_server(("0.0.0.0", PORT), backlog=16)

    def accept():
        while True:
            control, _ = listener.accept()
            threading.Thread(target=receive, args=(control,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = send(json.loads(line))
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
