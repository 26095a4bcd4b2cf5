#!/usr/bin/env python3
"""Makes fixtures/generation/bf16_errors.json: the error of PyTorch's bf16 logits on each checkpoint in fixtures/generation.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt
    .venv/bin/python scripts/make_bf16_errors.py [FIXTURES]

For each fixture and prompt, the file holds the relative error of the logits after the last token of the prompt: the norm of
the difference from the golden logits, which are f32, over their norm. Tests hold the engine `tuned` in bf16 against it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent


def main():
    fixtures = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "fixtures"
    errors = {}
    for folder in sorted(path for path in (fixtures / "generation").iterdir() if path.is_dir()):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True
        ).eval()
        golden = load_file(folder / "golden.safetensors")
        errors[folder.name] = {}
        for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
            ids = prompt["ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            expected = golden[f"{prompt['name']}.logits"][len(ids) - 1]
            errors[folder.name][prompt["name"]] = round(((logits - expected).norm() / expected.norm()).item(), 6)
    (fixtures / "generation" / "bf16_errors.json").write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
