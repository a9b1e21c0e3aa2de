#!/usr/bin/env python3
"""Results of a real lm-evaluation-harness, for the gate to read: OUTDIR/<run>/results_*.json and samples_*.jsonl.

The harness runs a small character model over made-up facts: run `a` learnt three in four, `b` half of them, `a-again`
is `a` once more, `a-limited` is `a` over part of the suite, `a-chat` is `a` with a chat template, `a-plain` is `a`
without samples. Needs python3 with venv, and a package index for the harness unless it is in the cache.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from hosts import cache_dir, give_up

# This file has the harness's own name and would be imported in its place.
sys.path.remove(str(Path(__file__).resolve().parent))

HARNESS = "lm_eval==0.4.13"
TASKS = ["facts", "facts_text", "facts_answer", "facts_last_word"]
# Character context of the model, and the weight of the longer context where both have been seen.
ORDER = 24
LONGER = 0.9
ALPHABET = 256
ANSWER_CHARS_MAX = 24

YAML = {
    "facts_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "facts_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "^ ([A-Z][a-z]+)\\\\.$"}, {function: take_first}]
  - name: flexible
    filter: [{function: regex, regex_pattern: "([A-Z][a-z]+)"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: false}]
num_fewshot: 2
""",
    "facts_last_word": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "facts_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
""",
    "facts_choice_shout": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: !function helpers.shout
metric_list: [{metric: acc}]
""",
}
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: facts.jsonl, train: shots.jsonl}}}}
test_split: test
fewshot_split: train
metadata: {{version: 1.0}}
"""
GROUP = """
group: facts
task: [facts_choice, facts_choice_shout]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 2}
"""
HELPERS = '''
def shout(doc):
    return [choice + "!" for choice in doc["choices"]]
'''
TEMPLATE = "{% for m in messages %}<{{m.role}}>{{m.content}}\n{% endfor %}<assistant>"


def with_harness():
    """Starts over in a Python that has the harness, made once and kept."""
    venv = cache_dir() / "lm-eval"
    python = venv / "bin/python"
    probe = [python, "-c", "import lm_eval"]
    if Path(sys.prefix) == venv:
        return
    if not python.exists() or subprocess.run(probe, capture_output=True).returncode:
        made = subprocess.run([sys.executable, "-m", "venv", venv]).returncode == 0
        if not made or subprocess.run([python, "-m", "pip", "install", "-q", HARNESS]).returncode:
            give_up(f"cannot make a Python environment with {HARNESS} in {venv}")
    # Nothing is downloaded by the harness itself, and no name of this host goes into its files.
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1", "PYTHONPATH": ""}
    os.execve(python, [str(python), *sys.argv], {**os.environ, **quiet})


def facts(count, seed):
    """Made-up facts, each a document of every task."""
    draw = random.Random(seed)
    parts = ["ba", "de", "lo", "mi", "ru", "sha", "ten", "vor", "wy", "zan"]
    word = lambda: "".join(draw.choice(parts) for _ in range(3)).capitalize()  # noqa: E731
    rows, seen = [], set()
    while len(rows) < count:
        place, keeper, *others = (word() for _ in range(5))
        if len({place, keeper, *others} | seen) < 5 + len(seen):
            continue
        seen.add(place)
        choices = [keeper, *others]
        draw.shuffle(choices)
        question = f"The keeper of {place} is"
        rows.append({
            "text": f"{question} {keeper}.",
            "question": question,
            "answer": keeper,
            "choices": choices,
            "label": choices.index(keeper),
        })
    return rows


def write_suite(folder, count, seed):
    """The tasks, their data and what the models learn from."""
    rows = facts(count + 20, seed)
    folder.mkdir()
    for name, part in {"facts": rows[:count], "shots": rows[count:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, body in YAML.items():
        (folder / f"{name}.yaml").write_text(COMMON.format(name=name) + body)
    (folder / "facts.yaml").write_text(GROUP)
    (folder / "helpers.py").write_text(HELPERS)
    return [row["text"] for row in rows]


def model_class():
    import numpy
    from jinja2 import Template
    from lm_eval.api.model import LM

    class Ngram(LM):
        """Interpolated character n-grams: nothing random, the same on every machine."""

        tokenizer_name = "characters"

        def __init__(self, lines):
            super().__init__()
            self.counts = defaultdict(Counter)
            for line in lines:
                text = "\n" + line + "\n"
                for at in range(1, len(text)):
                    for order in range(min(ORDER, at) + 1):
                        self.counts[text[at - order : at]][text[at]] += 1

        def chances(self, context, char):
            chance = 1 / ALPHABET
            for order in range(min(ORDER, len(context)) + 1):
                seen = self.counts.get(context[len(context) - order :])
                if seen is None:
                    break
                chance = (1 - LONGER) * chance + LONGER * seen[char] / seen.total()
            return chance

        def likeliest(self, context):
            known = next(
                seen
                for order in range(min(ORDER, len(context)), -1, -1)
                if (seen := self.counts.get(context[len(context) - order :])) is not None
            )
            return max(sorted(known), key=lambda char: self.chances(context, char))

        def score(self, context, text):
            logs, greedy = 0.0, True
            context = "\n" + context
            for char in text:
                logs += math.log(self.chances(context, char))
                greedy = greedy and self.likeliest(context) == char
                context += char
            return logs, greedy

        def loglikelihood(self, requests):
            return [self.score(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests):
            return [self.score("", request.args[0])[0] for request in requests]

        def generate_until(self, requests):
            answers = []
            for context, settings in (request.args for request in requests):
                context, answer = "\n" + context, ""
                while len(answer) < ANSWER_CHARS_MAX:
                    char = self.likeliest(context + answer)
                    if char in settings["until"]:
                        break
                    answer += char
                answers.append(answer)
            return answers

        def chat_template(self, chat_template=False):
            return TEMPLATE if chat_template else ""

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return Template(TEMPLATE).render(messages=chat_history)

    numpy.seterr(all="ignore")
    return Ngram


def run(model, name, suite, out, limit=None, samples=True, chat=False):
    """One run of the harness, saved by its own writer."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path="saved")
    results = simple_evaluate(
        model=model,
        model_args={"pretrained": name},
        tasks=TASKS,
        limit=limit,
        bootstrap_iters=100,
        log_samples=samples,
        apply_chat_template=chat,
        evaluation_tracker=tracker,
        task_manager=TaskManager(include_path=".", include_defaults=False, metadata={"pretrained": name}),
    )
    logged = results.pop("samples", None)
    tracker.save_results_aggregated(results=results, samples=logged)
    for task, rows in (logged or {}).items():
        tracker.save_results_samples(task_name=task, samples=rows)
    (written,) = (suite / "saved").iterdir()
    shutil.move(written, out)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("outdir", metavar="OUTDIR", type=Path, help="a directory that does not exist yet")
    options.add_argument("--docs", type=int, default=200, help="documents per task (default: 200)")
    options.add_argument("--seed", type=int, default=1)
    options = options.parse_args()
    if options.outdir.exists():
        give_up(f"{options.outdir} exists; name a directory that does not")
    with_harness()
    out = options.outdir.absolute()
    root = Path(tempfile.mkdtemp(prefix="weighlock-lm-eval-"))
    try:
        suite = root / "suite"
        lines = write_suite(suite, options.docs, options.seed)
        # Paths in the tasks, and so in the results, are relative.
        os.chdir(suite)
        os.environ["HF_HOME"] = str(root / "hf")
        model = model_class()
        a = model([line for at, line in enumerate(lines) if at % 4 < 3])
        b = model([line for at, line in enumerate(lines) if at % 4 in (0, 2)])
        out.mkdir(parents=True)
        run(a, "char-ngram-a", suite, out / "a")
        run(b, "char-ngram-b", suite, out / "b")
        run(a, "char-ngram-a", suite, out / "a-again")
        run(a, "char-ngram-a", suite, out / "a-limited", limit=max(2, options.docs // 4))
        run(a, "char-ngram-a", suite, out / "a-chat", chat=True)
        run(a, "char-ngram-a", suite, out / "a-plain", samples=False)
    finally:
        os.chdir("/")
        shutil.rmtree(root, ignore_errors=True)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    print(json.dumps({"test": "lm_eval", "harness": HARNESS, "files": files}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
