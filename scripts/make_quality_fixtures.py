#!/usr/bin/env python3
"""Makes the golden files of fixtures/quality: perplexities by transformers, and tasks by lm-evaluation-harness.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-quality.txt
    .venv/bin/python scripts/make_quality_fixtures.py

The checkpoints are those of fixtures/generation. The texts and questions of fixtures/quality are our own.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

# Everything that is read lies in this repository.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "fixtures" / "generation"
OUT = ROOT / "fixtures" / "quality"
WITH_TOKENIZER = "llama-gqa-tied"
# The file of each task in lm_eval, and the split that it scores.
TASKS = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
}

# Checkpoint, file, window and stride. The strides divide the window, do not divide it, are 1, and are the window.
PERPLEXITIES = [
    (WITH_TOKENIZER, "text.txt", 128, 32),
    (WITH_TOKENIZER, "text.txt", 256, 100),
    (WITH_TOKENIZER, "text.txt", 64, 64),
    (WITH_TOKENIZER, "ids.txt", 100, 37),
    ("llama-mha-untied", "ids.txt", 64, 48),
    ("qwen3-gqa-tied", "ids.txt", 24, 1),
    ("qwen3-mha-untied", "ids.txt", 80, 40),
    ("gemma3-short-window", "ids.txt", 96, 36),
]
# Subject, reference, file, window and stride.
DIVERGENCES = [
    ("llama-mha-untied", WITH_TOKENIZER, "ids.txt", 64, 24),
    ("qwen3-gqa-tied", "gemma3-short-window", "ids.txt", 100, 37),
]


def model_of(name):
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def inputs_of(ids, file, begin, end):
    """A window. BOS, which the tokenizer puts before a text, takes the place of its first token, as in llama.cpp."""
    return [ids[0] if file == "text.txt" else ids[begin], *ids[begin + 1 : end]]


def ids_of(file):
    text = (OUT / file).read_text()
    if file == "text.txt":
        return AutoTokenizer.from_pretrained(CHECKPOINTS / WITH_TOKENIZER)(text).input_ids
    return [int(word) for word in text.replace(",", " ").split()]


def windows(count, length, stride):
    """Begin and end of each window, and the end of the one before."""
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        yield begin, end, before
        before = end
        if end == count:
            break


def documented(model, ids, file, length, stride):
    """The loop in the documentation of transformers, which weighs a window by its labels less one."""
    total, tokens = 0.0, 0
    for begin, end, before in windows(len(ids), length, stride):
        inputs = torch.tensor([inputs_of(ids, file, begin, end)])
        labels = inputs.clone()
        labels[:, : -(end - before)] = -100
        weight = int((labels != -100).sum()) - 1
        if weight == 0:
            continue
        with torch.no_grad():
            total += float(model(inputs, labels=labels).loss) * weight
        tokens += weight
    return total / tokens


def log_probabilities(model, ids, file, length, stride):
    """Log-probabilities of the vocabulary at each token that counts, and these tokens."""
    rows, targets = [], []
    for begin, end, before in windows(len(ids), length, stride):
        with torch.no_grad():
            logits = model(torch.tensor([inputs_of(ids, file, begin, end)]), use_cache=False).logits[0].double()
        first = max(before, begin + 1)
        rows.append(torch.log_softmax(logits, -1)[first - 1 - begin : end - 1 - begin])
        targets += ids[first:end]
    return torch.cat(rows), torch.tensor(targets)


def perplexity(name, file, length, stride):
    model, ids = model_of(name), ids_of(file)
    rows, targets = log_probabilities(model, ids, file, length, stride)
    nll = -rows.gather(1, targets[:, None])[:, 0]
    return {
        "checkpoint": name, "file": file, "seq_len": length, "stride": stride,
        "file_tokens": len(ids), "tokens": len(targets),
        "nll": nll.mean().item(),
        "standard_error": (nll.std() / len(nll) ** 0.5).item(),
        "transformers_nll": documented(model, ids, file, length, stride),
    }


def divergence(name, reference, file, length, stride):
    ids = ids_of(file)
    rows, _ = log_probabilities(model_of(name), ids, file, length, stride)
    expected, _ = log_probabilities(model_of(reference), ids, file, length, stride)
    kl = torch.nn.functional.kl_div(rows, expected, log_target=True, reduction="none").sum(-1)
    return {
        "checkpoint": name, "reference": reference, "file": file, "seq_len": length, "stride": stride,
        "kl_mean": kl.mean().item(),
        "kl_standard_error": (kl.std() / len(kl) ** 0.5).item(),
        "kl_max": kl.max().item(),
        "top1_agreement": (rows.argmax(-1) == expected.argmax(-1)).double().mean().item(),
    }


def evaluation():
    model = HFLM(pretrained=str(CHECKPOINTS / WITH_TOKENIZER), device="cpu", dtype="float32", batch_size=1)
    # The tasks as published, except that they read the files of this repository.
    published = Path(lm_eval.__file__).parent / "tasks"
    tasks = []
    for task, (file, split) in TASKS.items():
        config = load_yaml(published / file) | {"dataset_path": "json", "dataset_name": None, "training_split": None}
        tasks.append(config | {"dataset_kwargs": {"data_files": {split: str(OUT / f"{task}.jsonl")}}})
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks, num_fewshot=0, log_samples=True, bootstrap_iters=0, task_manager=TaskManager())
    golden = {}
    for task in TASKS:
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        figures = found["results"][task]
        golden[task] = {
            "acc": figures["acc,none"],
            "acc_norm": figures.get("acc_norm,none"),
            "perplexity": figures.get("perplexity,none"),
            "questions": [
                {
                    "arguments": [list(pair) for pair in arguments(sample)],
                    "log_likelihoods": [float(response[0]) for response in responses(sample)],
                    "is_greedy": [str(response[1]) == "True" for response in responses(sample)],
                    "acc": sample["acc"],
                    "acc_norm": sample.get("acc_norm"),
                }
                for sample in samples
            ],
        }
    return golden


def responses(sample):
    """Pairs of log-likelihood and whether it is greedy."""
    return [response[0] for response in sample["resps"]]


def arguments(sample):
    """Pairs of context and continuation."""
    pairs = sample["arguments"]
    if isinstance(pairs, dict):
        return [(pair["arg_0"], pair["arg_1"]) for pair in pairs.values()]
    return pairs


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20)
    ids = torch.randint(3, 320, (407,), generator=generator).tolist()
    lines = [", ".join(map(str, ids[start:start + 20])) for start in range(0, len(ids), 20)]
    (OUT / "ids.txt").write_text(",\n".join(lines) + "\n")
    write_json(OUT / "golden.json", {
        "made_with": {
            "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
            "lm_eval": version("lm_eval"),
        },
        "perplexities": [perplexity(*case) for case in PERPLEXITIES],
        "divergences": [divergence(*case) for case in DIVERGENCES],
        "tasks": evaluation(),
    })


if __name__ == "__main__":
    main()
