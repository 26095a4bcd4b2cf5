#!/bin/sh
# Makes a simulated CUDA device in a folder, to run a build with `--features cuda` without a GPU. Its driver, cuBLAS,
# cuRAND and NVML take precedence over the real ones. Kernels are those that nvcc compiled, translated to C on demand
# (python3, and gcc 12 or clang 15 for 16-bit floats; 0.2 s each) and cached in the folder. Results are those of a
# device; times mean nothing.
#
#   eval "$(scripts/cuda-simulated.sh target/simulated)"
#   CANDLEPOWER_DEVICE=cuda:0 cargo test --release --features cuda golden
#
# It needs CUDA's headers, found by CUDA_HOME. tests/cuda/driver.c and nvml.c list the settings for memory and
# failures.
set -eu
into=${1:?"the folder to make it in is needed: scripts/cuda-simulated.sh FOLDER"}
sources=$(cd "$(dirname "$0")/../tests/cuda" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}

fail() {
    echo "error: $1" >&2
    exit 1
}
[ -e "$cuda/include/cuda.h" ] || fail "no CUDA at $cuda: set CUDA_HOME (scripts/cuda-toolchain.sh installs one)"
command -v python3 >/dev/null || fail "python3 is needed to translate kernels"

mkdir -p "$into"
into=$(cd "$into" && pwd)
work=$(mktemp -d "$into/new.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The real libraries have a version for each function, and programs reject libraries without.
library() {
    name=$1
    versions=$2
    shift 2
    echo "${versions:-simulated} { global: *; };" >"$work/versions"
    "${CC:-cc}" -shared -fPIC -Wl,-soname,"$name" -Wl,--version-script,"$work/versions" -I"$cuda/include" -o "$work/$name" "$@" \
        >&2 || fail "$name could not be compiled"
    mv "$work/$name" "$into/$name"
}
# Named after the installed release: libcublas.so.13, libcurand.so.10.
called() {
    for found in "$cuda/lib64/lib$1.so".[0-9][0-9]; do
        [ -e "$found" ] || fail "no lib$1 in $cuda/lib64"
        basename "$found"
    done
}
cublas=$(called cublas)
curand=$(called curand)
# Functions that Candle does not call exist too and return that they are not supported (801).
grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u |
    sed 's/.*/__attribute__((weak)) int &(void) { return 801; }/' >"$work/others.c"
"${CC:-cc}" -c -fPIC -w -fno-builtin -o "$work/others.o" "$work/others.c" >&2 || fail "libcuda.so.1 could not be compiled"
library libcuda.so.1 "" -O2 -DSOURCES="\"$sources\"" "$sources/driver.c" "$work/others.o" -ldl -lpthread
library "$cublas" "$cublas" -O3 -march=native -fassociative-math -fno-signed-zeros -fno-trapping-math \
    "$sources/cublas.c" "$into/libcuda.so.1" -lm
library "$curand" "$curand" -O2 "$sources/curand.c" -lm
library libnvidia-ml.so.1 "" -O2 "$sources/nvml.c"
echo "export LD_LIBRARY_PATH='$into:$cuda/lib64'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
