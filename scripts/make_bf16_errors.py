#!/usr/bin/env python3
"""Makes bf16_errors.json beside fixtures: the error of PyTorch in bf16 on each of them.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-fixtures.txt -r scripts/requirements-psann.txt
    .venv/bin/python scripts/make_bf16_errors.py [FIXTURES] [--only FIXTURE]

For each fixture and case, the file holds the relative error: the norm of the difference from the golden values, which are f32,
over their norm. In `generation`, the cases are prompts, and the values are the logits after each and after the greedy tokens that
follow it. In `psann` and `temporal`, they are all logits and the output. Weights and activations are bf16. Tests hold results in bf16
against these errors. With --only, the errors of other fixtures stay as they are, and only its kind needs its packages.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent


def relative(found, expected):
    return round(((found.float() - expected).norm() / expected.norm()).item(), 6)


def generation(folder, golden):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True
    ).eval()
    errors = {}
    for prompt in json.loads((folder / "golden.json").read_text())["prompts"]:
        ids, first = prompt["ids"] + prompt["greedy"][:-1], len(prompt["ids"]) - 1
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, first:]
        errors[prompt["name"]] = relative(logits, golden[f"{prompt['name']}.logits"][first:])
    return errors


def psann(folder, golden):
    from make_psann_fixtures import build

    config = json.loads((folder / "config.json").read_text())
    model = build(config.pop("base"), config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return {"logits": relative(model.to(torch.bfloat16)(golden["ids"][:, :-1]), golden["logits"])}


def temporal(folder, golden):
    from make_temporal_fixtures import Forecaster

    config = json.loads((folder / "config.json").read_text())
    model = Forecaster(config["architecture"], config["sizes"], config["horizon"], config["outputs"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    output = model.to(torch.bfloat16)(golden["series"].to(torch.bfloat16))
    return {"output": relative(output, golden["output"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixtures", type=Path, nargs="?", default=ROOT / "fixtures")
    parser.add_argument("--only", help="make the errors of the fixture of this name and leave the others as they are")
    arguments = parser.parse_args()
    is_found = False
    for errors_of in (generation, psann, temporal):
        kind = arguments.fixtures / errors_of.__name__
        folders = sorted(path for path in kind.iterdir() if path.is_dir() and arguments.only in {None, path.name})
        if not folders:
            continue
        is_found = True
        errors = json.loads((kind / "bf16_errors.json").read_text()) if arguments.only else {}
        for folder in folders:
            # Positions are f32 in some models, whose next layer refuses their results without the casts of autocast.
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=errors_of is not generation):
                errors[folder.name] = errors_of(folder, load_file(folder / "golden.safetensors"))
        (kind / "bf16_errors.json").write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")
    if not is_found:
        parser.error(f"--only {arguments.only}: no fixture has this name")


if __name__ == "__main__":
    main()
