#!/usr/bin/env python3
"""Holds the dependency tree against deny.toml where cargo-deny is not installed: licences, banned crates, sources."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def strings(text, key):
    """The strings of `key = [...]` in TOML that has no brackets inside strings; Python before 3.11 has no reader."""
    found = re.search(rf"^{key} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    body = re.sub(r"#.*", "", found.group(1)) if found else ""
    return re.findall(r'"([^"]+)"', body)


def allowed(expression, allow):
    """Whether an SPDX expression can be met by the allowed licences. `/` is the old way of writing OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    if not tokens:
        return False

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    return either()


def shipped(target):
    """Crates that are built for `target`, as (name, version, licence, source). What only tests use is left out."""
    command = ["cargo", "tree", "--workspace", "--locked", "--target", target, "--edges", "normal,build"]
    command += ["--prefix", "none", "--format", "{p}\t{l}"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for line in filter(None, done.stdout.splitlines()):
        package, licence = line.removesuffix(" (*)").split("\t")
        name, version, *rest = package.replace("(proc-macro)", "").split()
        yield name, version, licence, " ".join(rest).strip("()")


def main():
    text = (ROOT / "deny.toml").read_text()
    allow = set(strings(text, "allow"))
    banned = set(re.findall(r'crate = "([^"]+)"', text))
    crates = {crate for target in strings(text, "targets") for crate in shipped(target)}
    wrong = []
    for name, version, licence, source in sorted(crates):
        if not allowed(licence, allow):
            wrong.append(f"{name} {version}: licence {licence!r} is not among those that deny.toml allows")
        if name in banned:
            wrong.append(f"{name} {version}: banned by deny.toml")
        # Of crates from the registry cargo names no source; our own are named by their path.
        if source and not Path(source).is_relative_to(ROOT):
            wrong.append(f"{name} {version}: comes from {source}")
    for line in wrong:
        print(f"error: {line}")
    print(f"{len(crates)} crates, {len(wrong)} not as deny.toml wants")
    return 1 if wrong or not crates else 0


if __name__ == "__main__":
    sys.exit(main())
