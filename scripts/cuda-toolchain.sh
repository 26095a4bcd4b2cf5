#!/bin/sh
# Installs NVIDIA's compiler and libraries from Python wheels into a folder, to compile with `--features cuda` without
# an installed CUDA. Needs Linux, python3 with pip, and a C compiler, but neither root nor a GPU.
#
#   eval "$(scripts/cuda-toolchain.sh target/cuda)"
#   cargo bench --features cuda --no-run
#
# Standard output sets the environment; messages go to standard error. A complete folder is not installed again.
# CUDA_COMPUTE_CAP is the compute capability to compile for: by default that of the installed GPU, or 90 (H100 and
# H200).
set -eu
into=${1:?"the folder to install into is needed: scripts/cuda-toolchain.sh FOLDER"}

fail() {
    echo "error: $1" >&2
    exit 1
}

# All from one release, 13.0 update 2, because others may be incompatible. Its libraries need a driver of version 580
# or later.
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88"

install() {
    [ "$(uname -s)" = Linux ] || fail "the compiler's wheels are for Linux, not $(uname -s); install CUDA itself"
    [ -z "$(ls -A "$into" 2>/dev/null)" ] || fail "$into is not empty, and not from here: name another folder"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed: install it (Debian: python3-pip)"
    compiler=${CC:-cc}
    command -v "$compiler" >/dev/null || fail "a C compiler is needed ('$compiler' was not found; CC names another)"
    mkdir -p "$(dirname "$into")"
    work=$(mktemp -d "$into.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$work/wheels" $wheels >&2 || fail "the wheels could not be installed into $work"
    mv "$work/wheels/nvidia/cu13" "$work/toolchain"
    cd "$work/toolchain"
    chmod +x bin/* nvvm/bin/*
    ln -s lib lib64
    # Linkers search for names without a version.
    for library in lib/*.so.*; do
        name=${library#lib/}
        [ -e "lib/${name%%.so.*}.so" ] || ln -s "$name" "lib/${name%%.so.*}.so"
    done
    # The driver provides its own library. This stub has every function of its header, to link against and to start
    # without a GPU. Each function returns CUDA_ERROR_STUB_LIBRARY (34). Programs load libcuda.so.1, so with a driver
    # they use the real library.
    mkdir lib/stubs
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' include/cuda.h include/cudaProfiler*.h | sort -u |
        sed 's/.*/int &(void) { return 34; }/' >lib/stubs/libcuda.c
    "$compiler" -shared -fPIC -w -fno-builtin -Wl,-soname,libcuda.so.1 -o lib/stubs/libcuda.so.1 lib/stubs/libcuda.c >&2 ||
        fail "the stub of libcuda did not compile"
    ln -s libcuda.so.1 lib/stubs/libcuda.so
    bin/nvcc --version >&2 || fail "the compiler does not start"
    cd - >/dev/null
    [ ! -e "$into" ] || rmdir "$into"
    mv "$work/toolchain" "$into"
}

[ -e "$into/lib/stubs/libcuda.so" ] || install
home=$(cd "$into" && pwd)
found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || found=
cat <<END
export CUDA_HOME='$home'
export PATH="\$CUDA_HOME/bin:\$PATH"
export LD_LIBRARY_PATH="\$CUDA_HOME/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-${found:-90}}
END
