#!/bin/sh
# Packs the stripped benchmark programs for a machine that has a GPU but no Rust, such as a cluster node. Build on a
# machine with the toolchain and run on the machine with the GPU, which needs a driver and CUDA's libraries.
#
#   scripts/cuda-bundle.sh candlepower.tar.xz
#   tar -xf candlepower.tar.xz && cd candlepower && CANDLEPOWER_DEVICE=cuda:0 ./generation --bench && ./candlepower report
#
# The archive includes the golden tests. Run them first:
#
#   CANDLEPOWER_FIXTURES=fixtures CANDLEPOWER_DEVICE=cuda:0 ./golden golden
set -eu
out=${1:?"the archive to write is needed: scripts/cuda-bundle.sh candlepower.tar.xz"}
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/candlepower"
# One line of JSON per build artefact. Executables have the path of a program.
cargo bench --quiet --features cuda --no-run --message-format json >"$work/built"
sed -n 's/.*"kind":\["\(bench\|bin\)"\].*"name":"\([a-z_]*\)".*"executable":"\([^"]*\)".*/\2 \3/p' "$work/built" >"$work/programs"
cargo test --quiet --release --features cuda --lib --no-run --message-format json >"$work/built"
sed -n 's/.*"kind":\["lib"\].*"executable":"\([^"]*\)".*/golden \1/p' "$work/built" >>"$work/programs"
while read -r name program; do
    strip -o "$work/candlepower/$name" "$program"
    echo "$name" >&2
done <"$work/programs"
cp -r "$(dirname "$0")/../fixtures" "$work/candlepower/fixtures"
# The programs are similar. A large window finds the similarities.
XZ_OPT="-3 --lzma2=preset=3,dict=512MiB" tar -C "$work" -cJf "$work/packed" candlepower
mv "$work/packed" "$out"
echo "$out: $(wc -c <"$out") bytes" >&2
