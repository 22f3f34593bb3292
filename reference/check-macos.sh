#!/usr/bin/env bash
# Proves on Linux that the workspace builds for a Mac: type-checks every target for aarch64-apple-darwin, then links the
# program `ltx` as a Mach-O against the published libmlx.dylib. Runs nothing of it.
#
# Needs cargo, python3 with venv and, where the installed Rust has neither a standard library for the target nor its
# sources, apt-get and dpkg-deb on Debian. Fetches a C++ cross compiler (ziglang), Rust with library sources (Debian's
# packages, unpacked, not installed) and mlx-metal into ~/.cache/ltx, about 1.5 GB; later runs work offline.
# Exit: 0 proven, 77 a tool is missing, anything else it does not build.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=aarch64-apple-darwin
MACOS=14.0
ZIG=0.17.1
CACHE=${LTX_CACHE_DIR:-$HOME/.cache/ltx}/macos-tools
mkdir -p "$CACHE/bin"

step() { printf '\n== %s\n' "$*" >&2; }
missing() {
  printf 'error: cannot check for macOS: %s\nhint: %s\n' "$1" "$2" >&2
  exit 77
}
need() { command -v "$1" >/dev/null || missing "$1 is not installed" "$2"; }

need cargo "install Rust"
need python3 "apt-get install python3 python3-venv"

# 1. A standard library for the target: installed, or sources to build it from.
build_std=()
if [ ! -d "$(rustc --print target-libdir --target "$TARGET")" ]; then
  build_std=(-Zbuild-std=std,panic_unwind)
  export RUSTC_BOOTSTRAP=1
  if [ ! -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
    hint="rustup target add $TARGET"
    if [ ! -e "$CACHE/rust/complete" ]; then
      step "Rust with library sources, from Debian's packages"
      need apt-get "$hint"
      need dpkg-deb "$hint"
      depends() { apt-cache depends "$1" 2>/dev/null | sed -n "s/^  Depends: \\($2[0-9.]*\\)$/\\1/p"; }
      std=$(depends libstd-rust-web-dev libstd-rust-web-) && llvm=$(depends "$std" libllvm) && [ -n "$llvm" ] ||
        missing "this system has no package rustc-web" "$hint, or apt-get update"
      rm -rf "$CACHE/rust" "$CACHE/packages"
      mkdir -p "$CACHE/rust" "$CACHE/packages"
      (cd "$CACHE/packages" && apt-get download -q rustc-web libstd-rust-web-dev rust-web-src "$std" "$llvm") ||
        missing "the packages cannot be fetched" "$hint, or apt-get update"
      for package in "$CACHE"/packages/*.deb; do dpkg-deb -x "$package" "$CACHE/rust"; done
      rm -r "$CACHE/packages"
      touch "$CACHE/rust/complete"
    fi
    cat >"$CACHE/bin/rustc" <<EOF
#!/bin/sh
LD_LIBRARY_PATH=$(echo "$CACHE"/rust/usr/lib/*-linux-gnu) exec "$CACHE/rust/usr/bin/rustc" "\$@"
EOF
    chmod +x "$CACHE/bin/rustc"
    export RUSTC=$CACHE/bin/rustc
  fi
fi
"${RUSTC:-rustc}" --version >&2

# 2. A C and C++ compiler, archiver and linker for the target.
if ! "$CACHE/zig/bin/python" -m ziglang version >/dev/null 2>&1; then
  step "ziglang $ZIG"
  python3 -m venv --clear "$CACHE/zig" || missing "python3 has no venv" "apt-get install python3-venv"
  "$CACHE/zig/bin/pip" install -q "ziglang==$ZIG" || missing "ziglang cannot be fetched" "go online once"
fi
# cc and rustc speak to Apple's clang: what zig does not know, or knows from its own target, is left out.
cat >"$CACHE/bin/zig" <<EOF
#!$CACHE/zig/bin/python
import os, subprocess, sys
tool, arguments, kept = os.path.basename(sys.argv[0])[4:], sys.argv[1:], []
if tool in ("cc", "c++"):
    kept = ["-target", "aarch64-macos.$MACOS", "-L$CACHE/sdk/usr/lib", "-F$CACHE/sdk/System/Library/Frameworks"]
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-arch", "-target", "-isysroot"):
            arguments.pop(0)
        elif not argument.startswith(("--target=", "-mmacosx-version-min", "-mcpu=", "-march=")):
            kept.append(argument)
else:
    kept = arguments
sys.exit(subprocess.call([sys.executable, "-m", "ziglang", tool, *kept]))
EOF
chmod +x "$CACHE/bin/zig"
for tool in cc c++ ar ranlib; do ln -sf zig "$CACHE/bin/zig-$tool"; done

# zig knows Apple's libSystem only. Of the other libraries that crates name, what is used of them is declared here.
stub() {
  mkdir -p "$(dirname "$CACHE/sdk$1")"
  printf -- '--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: %s\nexports:\n  - targets: [ arm64-macos ]\n    symbols: [ %s ]\n...\n' \
    "$2" "$3" >"$CACHE/sdk$1"
}
stub /usr/lib/libiconv.tbd /usr/lib/libiconv.2.dylib "_iconv"
stub /usr/lib/libobjc.tbd /usr/lib/libobjc.A.dylib "_objc_release"
foundation=/System/Library/Frameworks/Foundation.framework
stub $foundation/Foundation.tbd $foundation/Versions/C/Foundation "_NSLog"

name=${TARGET//-/_}
export "CC_$name=$CACHE/bin/zig-cc" "CXX_$name=$CACHE/bin/zig-c++"
export "AR_$name=$CACHE/bin/zig-ar" "RANLIB_$name=$CACHE/bin/zig-ranlib"
export "CARGO_TARGET_$(tr a-z A-Z <<<"$name")_LINKER=$CACHE/bin/zig-c++"
# Nothing must ask `xcrun`, which only a Mac has; zig brings its own headers and libraries.
export SDKROOT=$CACHE/sdk MACOSX_DEPLOYMENT_TARGET=$MACOS
export CARGO_TARGET_DIR=${LTX_MACOS_TARGET_DIR:-$CACHE/target}

# 3. Check and link. Optimising would prove nothing more; stripping needs a tool that Debian's packages lack.
options=("${build_std[@]}" --locked --target "$TARGET")
for setting in opt-level=0 'package."*".opt-level=0' debug=false 'strip="none"'; do options+=(--config "profile.dev.$setting"); done
step "cargo check --workspace --all-targets --target $TARGET"
cargo check --workspace --all-targets "${options[@]}"
step "cargo build --bin ltx --target $TARGET"
cargo build --package ltx-cli --bin ltx "${options[@]}"

# 4. It is what a Mac would load: an arm64 executable that looks for libmlx beside itself.
python3 - "$CARGO_TARGET_DIR/$TARGET/debug/ltx" <<'EOF'
import struct, sys

program = open(sys.argv[1], "rb").read()
magic, processor, _, kind, commands, _ = struct.unpack_from("<6I", program)
if (magic, processor, kind) != (0xFEEDFACF, 0x0100000C, 2):
    sys.exit(f"error: {sys.argv[1]} is not a Mach-O 64-bit arm64 executable")
libraries, rpaths, place = [], [], 32
for _ in range(commands):
    command, size, text = struct.unpack_from("<3I", program, place)
    if command in (0xC, 0x8000001C):  # LC_LOAD_DYLIB, LC_RPATH
        name = program[place + text : place + size].split(b"\0")[0].decode()
        (libraries if command == 0xC else rpaths).append(name)
    place += size
print(f"{sys.argv[1]}: Mach-O 64-bit arm64 executable\n  libraries: {' '.join(libraries)}\n  rpaths: {' '.join(rpaths)}")
if "@rpath/libmlx.dylib" not in libraries or not rpaths or rpaths[0] != "@loader_path":
    sys.exit("error: it would not find libmlx.dylib beside itself")
EOF
