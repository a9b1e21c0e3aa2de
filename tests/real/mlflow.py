#!/usr/bin/env python3
"""Weighlock against a real MLflow: a model version is logged, added with its lineage, weighed, and written back to.

A real `mlflow server` from PyPI runs on loopback with a database and an artifact store in a temporary directory. What
was written is read back through MLflow's own client. Needs python3 with venv, a package index for MLflow unless it is
in the cache, and the release build (or WEIGHLOCK_BIN).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from hosts import binary, cache_dir, give_up

# This file has the package's own name and would be imported in its place.
sys.path.remove(str(Path(__file__).resolve().parent))

MLFLOW = "mlflow==3.17.2"
START_S_MAX = 180
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Runs under MLflow's own Python, as a training job would.
LOG = """
import json, sys
import mlflow
from pathlib import Path

uri, model_dir, commit = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
mlflow.set_experiment("support-bot")
with mlflow.start_run() as run:
    mlflow.log_params({"lr": 0.1, "epochs": 3})
    mlflow.log_metric("eval_loss", 2.75, step=1)
    mlflow.log_metric("eval_loss", 2.5, step=2)
    mlflow.set_tag("mlflow.source.git.commit", commit)
    mlflow.set_tag("team", "nlp")
    mlflow.log_artifacts(model_dir, "model")
    source = mlflow.get_artifact_uri("model")
client.create_registered_model("bot")
version = client.create_model_version("bot", source, run_id=run.info.run_id, tags={"reviewed": "yes"})
client.set_registered_model_alias("bot", "champion", version.version)

# As MLflow 3 logs a model: beside its run, and by a reference of its own.
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return model_input

with mlflow.start_run():
    mlflow.log_param("kind", "echo")
    logged = mlflow.pyfunc.log_model(name="echo", python_model=Echo(), registered_model_name="echo")
print(json.dumps({"run": run.info.run_id, "version": version.version, "source": source}))
"""

READ = """
import json, sys
import mlflow

uri, name, version = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
found = client.get_model_version(name, version)
aliases = client.get_registered_model(name).aliases
print(json.dumps({"tags": dict(found.tags), "aliases": {alias: str(v) for alias, v in aliases.items()}}))
"""


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok  {what}")


def python_with_mlflow():
    """The Python of an environment that has MLflow, made at the first use."""
    venv = cache_dir() / "mlflow-venv"
    python = venv / "bin/python"
    marker = venv / "installed"
    if not marker.exists() or marker.read_text() != MLFLOW:
        print(f"installing {MLFLOW} into {venv}")
        shutil.rmtree(venv, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(venv)])
        if made.returncode or subprocess.run([str(python), "-m", "pip", "install", "-q", MLFLOW]).returncode:
            give_up(f"{MLFLOW} cannot be installed")
        marker.write_text(MLFLOW)
    return python


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mlflow:
    """A real tracking server."""

    def __init__(self, python, root):
        self.python = python
        self.uri = f"http://127.0.0.1:{free_port()}"
        self.log = open(root / "mlflow.log", "wb")
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.uri.rsplit(":", 1)[1]]
        command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(root / "artifacts")]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=self.log, stderr=self.log, cwd=root, env=environment, start_new_session=True
        )
        deadline = time.monotonic() + START_S_MAX
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                give_up(f"mlflow server did not start:\n{(root / 'mlflow.log').read_text()[-3000:]}")
            time.sleep(0.5)

    def healthy(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def run(self, code, *arguments):
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        ran = subprocess.run(
            [self.python, "-c", code, self.uri, *arguments], capture_output=True, text=True, env=environment
        )
        if ran.returncode:
            sys.exit(f"MLflow's own client failed:\n{ran.stderr[-3000:]}")
        return json.loads(ran.stdout.splitlines()[-1])

    def stop(self):
        # It has workers; all of them are in its session.
        try:
            os.killpg(self.process.pid, 15)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()


class Weighlock:
    """A host of its own."""

    def __init__(self, root, mlflow_uri):
        self.root = root
        (root / "empty.toml").write_text("")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("WEIGHLOCK_", "MLFLOW_"))}
        self.environment = {
            **ours,
            "WEIGHLOCK_DATA_DIR": str(root / "store"),
            "WEIGHLOCK_KEYS_DIR": str(root / "keys"),
            "WEIGHLOCK_CONFIG": str(root / "empty.toml"),
            "MLFLOW_TRACKING_URI": mlflow_uri,
        }
        self.log = open(root / "daemon.log", "wb")
        loopback = ["--no-mdns", "--control-listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0"]
        command = [binary(), "up", *loopback, "--http-listen", "127.0.0.1:0"]
        self.daemon = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)
        self.ok("status", "--wait")

    def run(self, *arguments, **environment):
        return subprocess.run(
            [binary(), "--json", *map(str, arguments)],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )

    def ok(self, *arguments):
        ran = self.run(*arguments)
        if ran.returncode:
            sys.exit(f"FAILED: weighlock {arguments}: {ran.stderr}\n{(self.root / 'daemon.log').read_text()[-2000:]}")
        return json.loads(ran.stdout.splitlines()[-1])

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait()
        self.log.close()


def try_it(mlflow, host, root):
    model = root / "model"
    subprocess.run([binary(), "demo", "--write-model", str(model)], check=True, stdout=subprocess.DEVNULL)
    logged = mlflow.run(LOG, str(model), COMMIT)

    # The files are here already; MLflow says where they came from.
    with_path = host.ok("add", "--from-mlflow", "models:/bot@champion", model, "acme/bot:1.0.0")
    contract = host.ok("inspect", "acme/bot:1.0.0")["contract"]
    check(contract["lineage"] == {"mlflow_run": logged["run"], "git_commit": COMMIT}, "run and commit are in the lineage")
    origin = contract["mlflow"]
    check((origin["model"], origin["version"], origin["aliases"]) == ("bot", "1", ["champion"]), "model, version, alias")
    check(origin["params"] == {"lr": "0.1", "epochs": "3"}, f"parameters: {origin['params']}")
    check(float(origin["metrics"]["eval_loss"]) == 2.5, f"the last value of a metric: {origin['metrics']}")
    check((origin["tags"]["team"], origin["tags"]["reviewed"]) == ("nlp", "yes"), "tags of run and version")

    # And without them: through the server's artifact proxy.
    fetched = host.ok("add", "--from-mlflow", "models:/bot/1", "acme/bot:1.0.0")
    check(fetched["digest"] == with_path["digest"] and not fetched["new"], "downloaded files are the same artifact")
    echo = host.ok("add", "--from-mlflow", "models:/echo/1", "acme/echo:1.0.0")
    check(echo["files"] > 1, f"a model that MLflow 3 logged beside its run: {echo['files']} files")
    origin = host.ok("inspect", "acme/echo:1.0.0")["contract"]["mlflow"]
    check(origin["params"].get("kind") == "echo" and origin["run"], "its run is found")

    # A verdict, and back.
    report = root / "report"
    evaluate = [binary(), "demo", "--evaluate", str(model), "--out", str(report)]
    subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)
    policy = root / "gate.toml"
    policy.write_text('[metric.eval_loss]\ndirection = "lower"\nmax = 3.0\n')
    verdict = root / "verdict.dsse"
    gated = host.run("gate", "acme/bot:1.0.0", "--policy", policy, "--report", report, "--out", verdict)
    check(gated.returncode == 0, f"the gate passes it: {gated.stderr}")
    host.ok("statement", "import", verdict)
    dry = host.ok("mlflow", "push", "acme/bot:1.0.0", "--dry-run")
    before = mlflow.run(READ, "bot", "1")
    check(dry["changes"] and "weighlock.digest" not in before["tags"], "--dry-run says and changes nothing")
    pushed = host.ok("mlflow", "push", "acme/bot:1.0.0")
    check(pushed["changes"] == dry["changes"], "push does what --dry-run said")
    after = mlflow.run(READ, "bot", "1")
    check(after["tags"]["weighlock.digest"] == with_path["digest"], "MLflow has the digest")
    check(after["tags"]["weighlock.reference"] == "acme/bot:1.0.0", "MLflow has the reference")
    said = json.loads(after["tags"]["weighlock.verdict"])
    check(said["outcome"] == "pass" and said["policy"].startswith("sha256:"), f"MLflow has the verdict: {said}")
    check(after["tags"]["reviewed"] == "yes" and after["aliases"]["champion"] == "1", "the rest is as it was")
    check(host.ok("mlflow", "push", "acme/bot:1.0.0")["changes"] == [], "a second push changes nothing")

    # A stage that holds no longer: as if it had been written before a rollback.
    stale = """
import sys
import mlflow
uri, name, version = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
client.set_model_version_tag(name, version, "weighlock.stage.canary", "{}")
client.set_registered_model_alias(name, "canary", version)
print("{}")
"""
    mlflow.run(stale, "bot", "1")
    host.ok("mlflow", "push", "acme/bot:1.0.0")
    after = mlflow.run(READ, "bot", "1")
    check("weighlock.stage.canary" not in after["tags"] and "canary" not in after["aliases"], "a stage that is over goes")

    # Bad input: one line each.
    nowhere = f"http://127.0.0.1:{free_port()}"
    for arguments, environment, code, says in [
        (["add", "--from-mlflow", "models:/bot/99", model, "acme/bot:2"], {}, 4, "not found"),
        (["add", "--from-mlflow", "models:/nope/1", "acme/bot:2"], {}, 4, "not found"),
        (["add", "--from-mlflow", "models:/bot@nobody", model, "acme/bot:2"], {}, 2, "nobody"),
        (["add", "--from-mlflow", "bot", model, "acme/bot:2"], {}, 2, "models:/NAME/VERSION"),
        (["add", "--from-mlflow", "models:/bot/1", "acme/bot:2"], {"MLFLOW_TRACKING_URI": nowhere}, 6, "no answer"),
        (["add", "--from-mlflow", "models:/bot/1", "acme/bot:2"], {"MLFLOW_TRACKING_URI": "./mlruns"}, 2, "http://"),
        (["mlflow", "push", "acme/bot:9"], {}, 4, "acme/bot:9"),
    ]:
        ran = host.run(*arguments, **environment)
        check(ran.returncode == code and says in ran.stderr, f"{' '.join(map(str, arguments[:3]))}: {ran.stderr.splitlines()[0]}")


def main():
    python = python_with_mlflow()
    with tempfile.TemporaryDirectory(prefix="weighlock-mlflow-") as name:
        root = Path(name)
        mlflow = Mlflow(python, root)
        try:
            host = Weighlock(root, mlflow.uri)
            try:
                try_it(mlflow, host, root)
            finally:
                host.stop()
        finally:
            mlflow.stop()
    print("MLflow: all as it should be")


if __name__ == "__main__":
    main()
