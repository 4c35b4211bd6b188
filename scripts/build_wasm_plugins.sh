#!/usr/bin/env bash
# Builds, tests and cleans the example plugins; called without arguments it says how.
set -euo pipefail

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
examples=$root/examples/wasm_plugins
target=wasm32-unknown-unknown

usage() {
    cat <<'EOF'
usage: build_wasm_plugins.sh build|test|clean [--out DIR] [NAME ...]

  build   compile plugins to DIR/NAME.wasm
  test    build, then check the golden decisions (tests/*.json) on the result
  clean   remove what build made

NAME: a folder of examples/wasm_plugins, or the path of a crate (default: all of the examples).
DIR:  where the modules go (default: plugins at the root of the repository).
EOF
}

misused() { usage >&2; exit 2; }

die() { echo "build_wasm_plugins.sh: $*" >&2; exit 1; }

find_crate() {
    folder=$examples/$1
    [[ $1 != */* ]] || folder=$1
    [[ -f $folder/Cargo.toml ]] ||
        die "no plugin is called $1, only: $(cd "$examples" && dirname -- */Cargo.toml | xargs)"
    realpath "$folder"
}

# The name of the library of the crate in folder $1, as Cargo makes it of the package's name.
lib_name() { sed -n 's/^name *= *"\(.*\)"/\1/p' "$1/Cargo.toml" | head -n 1 | tr - _; }

can_use() {
    cargo=$(command -v "$1") && RUSTC=$(command -v "$2") &&
        sysroot=$("$RUSTC" --print sysroot 2>/dev/null) &&
        compgen -G "$sysroot/lib/rustlib/$target/lib/*" >/dev/null
}

find_toolchain() {
    can_use "${CARGO:-cargo}" "${RUSTC:-rustc}" || can_use /usr/bin/cargo /usr/bin/rustc ||
        die "no Rust toolchain has the target $target: run 'apt install rustc cargo" \
            "libstd-rust-dev-wasm32 librust-serde-dev librust-serde-derive-dev" \
            "librust-serde-json-dev lld' on Debian or Ubuntu, or 'rustup target add $target'."
    export RUSTC
    source_options=()
    # A distribution's compiler can be too old for the newest crates; the crates it ships fit.
    local registry=/usr/share/cargo/registry
    if [[ $sysroot == /usr ]] && compgen -G "$registry/serde_json-*" >/dev/null; then
        source_options=(--offline --config 'source.crates-io.replace-with="debian"'
            --config "source.debian.directory=\"$registry\"")
    fi
    # Flags from the environment would replace those in .cargo/config.toml.
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
}

build() {
    find_toolchain
    mkdir -p "$out"
    for crate in "${crates[@]}"; do
        module=$(lib_name "$crate").wasm
        # A lock made with another source of crates may name versions that this one lacks.
        [[ $crate/ != "$root"/* ]] || rm -f "$crate/Cargo.lock"
        # Cargo looks for .cargo/config.toml from the current folder upwards.
        # A crate from elsewhere has none, and would be linked with a stack of 1 MiB.
        (cd "$crate" && "$cargo" build --quiet --release --target "$target" --target-dir target \
            --config "$examples/.cargo/config.toml" "${source_options[@]}")
        install -m 644 "$crate/target/$target/release/$module" "$out/$module"
        echo "$out/$module: $(wc -c <"$out/$module") bytes"
    done
}

find_python() {
    python=$root/.venv/bin/python
    [[ -x $python ]] || python=python3
    "$python" -c 'import pytest, sgl_router' 2>/dev/null ||
        die "the golden decisions need pytest and sgl_router, and $python lacks one of them: run" \
            "'pip install -e $root[test]', or 'make test', which makes $root/.venv with both."
}

check() {
    "$python" -m pytest "$root/tests/wasm/test_golden_decisions.py" --plugin-dir "$out" \
        ${chosen:+-k "$chosen"}
}

clean() {
    for crate in "${crates[@]}"; do
        rm -rf "$crate/target" "$crate/Cargo.lock" "$out/$(lib_name "$crate").wasm"
    done
}

command=${1-} out=$root/plugins crates=() chosen=
[[ $command =~ ^(build|test|clean)$ ]] || {
    [[ $command =~ ^(-h|--help)$ ]] || misused
    usage
    exit
}
while shift && (($#)); do
    case $1 in
        --out) out=${2-}; [[ $out ]] || misused; shift ;;
        -h | --help) usage; exit ;;
        -*) misused ;;
        *) crate=$(find_crate "$1"); crates+=("$crate"); chosen+=${chosen:+ or }${crate##*/} ;;
    esac
done
((${#crates[@]})) || for file in "$examples"/*/Cargo.toml; do crates+=("${file%/*}"); done

case $command in
    build) build ;;
    test) find_python; build; check ;;
    *) clean ;;
esac
