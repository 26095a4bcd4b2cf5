"""lm-evaluation-harness, whose log-likelihoods must be those of `candlepower eval`. packages: lm_eval[api]"""

import json
import os
import subprocess
from pathlib import Path

# Everything that is read lies in this repository.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

URL, KEY, MODEL, TOKENIZER, PROGRAM = (os.environ[name] for name in ("URL", "KEY", "MODEL", "TOKENIZER", "PROGRAM"))
QUESTIONS = Path(__file__).resolve().parents[2] / "fixtures" / "quality"
# The file of each task in lm_eval, and the split that it scores.
TASKS = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
}


def main():
    os.environ["OPENAI_API_KEY"] = KEY
    published = Path(lm_eval.__file__).parent / "tasks"
    tasks = []
    for task, (file, split) in TASKS.items():
        config = load_yaml(published / file) | {"dataset_path": "json", "dataset_name": None, "training_split": None}
        tasks.append(config | {"dataset_kwargs": {"data_files": {split: str(QUESTIONS / f"{task}.jsonl")}}})
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=f"model={MODEL},base_url={URL}/completions,tokenizer={TOKENIZER},num_concurrent=2,max_retries=1",
        tasks=tasks, num_fewshot=0, log_samples=True, bootstrap_iters=0, task_manager=TaskManager())
    command = [PROGRAM, "eval", "--model", MODEL, "--engine", "tuned", "--tasks", ",".join(TASKS), "--data", QUESTIONS, "--json"]
    own = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    worst, count = 0.0, 0
    for task in own["tasks"]:
        samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
        for sample, score in zip(samples, task["scores"], strict=True):
            pairs = zip(sample["resps"], score["log_likelihoods"], strict=True)
            differences = [abs(float(response[0][0]) - own) for response, own in pairs]
            worst, count = max([worst, *differences]), count + len(differences)
        assert abs(found["results"][task["task"]]["acc,none"] - task["acc"]) < 1e-9, task["task"]
    print(f"outcome: {count} log-likelihoods, at most {worst:.0e} from those of candlepower eval")
    assert count > 0 and worst <= 1e-3


main()
