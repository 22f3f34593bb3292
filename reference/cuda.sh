#!/usr/bin/env bash
# Proves on one machine with an NVIDIA card that `ltx` is right and how fast it is, beside PyTorch, and writes a table.
#
#   reference/cuda.sh [--device gpu|cpu] [--tiny] [--binary DIR] [--state DIR] [--table FILE] [--python PYTHON] [PART...]
#   reference/cuda.sh --pack DIR            copies the program that `cargo build --release --features cuda` made to DIR
#
# Parts, in this order: info verify clips bench rows table. What a part has found is in the state folder, one file for
# each work; a part that is run again does what is missing. So the proof can be made in several calls. Nothing is
# fetched. A part that fails, or takes longer than its limit, is reported, and the others run all the same.
set -uo pipefail
cd "$(dirname "$0")/.."

device=gpu tiny=0 binary= state=target/cuda table= python=python3 pack= parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift 2 ;;
    --tiny) tiny=1; shift ;;
    --binary) binary=$2; shift 2 ;;
    --state) state=$2; shift 2 ;;
    --table) table=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --pack) pack=$2; shift 2 ;;
    -*) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) parts+=("$1"); shift ;;
  esac
done

if [ -n "$pack" ]; then
  # The program, and both of MLX's libraries in the folders where they look for their own.
  set -e
  ltx=${CARGO_TARGET_DIR:-target}/release/ltx
  cache=${LTX_CACHE_DIR:-$HOME/.cache/ltx}/mlx
  mkdir -p "$pack/cpu/mlx/lib" "$pack/cuda/mlx/lib" "$pack/cuda/mlx/include"
  strip -o "$pack/ltx" "$ltx"
  cpu=("$cache"/*-cpu-manylinux_*_"$(uname -m)") cuda=("$cache"/*-cuda-13-manylinux_*_"$(uname -m)")
  cp "${cpu[0]}/mlx/lib/libmlx.so" "$pack/cpu/mlx/lib/"
  cp -r "${cpu[0]}/mlx_cpu.libs" "$pack/cpu/"
  strip -o "$pack/cuda/mlx/lib/libmlx.so" "${cuda[0]}/mlx/lib/libmlx.so"
  cp -r "${cuda[0]}"/mlx/include/{cccl,cute,cutlass} "$pack/cuda/mlx/include/"
  cp -r "${cuda[0]}/mlx_cuda_13.libs" "$pack/cuda/"
  du -sh "$pack"
  exit
fi

if [ -n "$binary" ]; then
  binary=$(realpath "$binary")
  export LTX=$binary/ltx LD_LIBRARY_PATH=$binary/cpu/mlx/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
  export LTX=${LTX:-${CARGO_TARGET_DIR:-target}/release/ltx}
fi
mkdir -p "$state"
state=$(realpath "$state")
export DEVICE=$device TINY=$tiny STATE=$state
[ ${#parts[@]} -gt 0 ] || parts=(info verify clips bench rows table)

info() {
  git log -1 --format='commit %h' 2>/dev/null
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  "$LTX" --version && "$LTX" devices
  "$python" -c 'import torch; print("PyTorch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())'
}

verify() {
  local goldens=(fixtures/goldens/*.safetensors) failed=0
  [ "$tiny" = 0 ] || goldens=(fixtures/goldens/2.*-dit-*.safetensors)
  for dtype in f32 bf16; do
    # 0: all pass; 1: some do not; 2: some cannot be used.
    "$LTX" verify --device "$device" --dtype $dtype --json "${goldens[@]}" >"$state/verify-$dtype.json" || failed=1
    "$python" - "$state/verify-$dtype.json" $dtype <<'PYTHON' || failed=1
import json, sys
found = [json.loads(line) for line in open(sys.argv[1])]
bad = [report for report in found if not report["pass"]]
print(f"{sys.argv[2]}: {len(found) - len(bad)} of {len(found)} goldens pass")
for report in bad:
    worst = max((tensor["relative"] for tensor in report["tensors"] if not tensor["pass"]), default=None)
    print(f"  FAIL {report['golden']}: relative {worst}")
sys.exit(bool(bad) or not found)
PYTHON
  done
  return $failed
}

clips() { "$python" reference/cuda/clips.py; }
bench() { "$python" reference/cuda/bench.py; }
rows() { "$python" reference/cuda/rows.py; }

declare -A limits=([info]=60 [verify]=200 [clips]=150 [bench]=540 [rows]=420)
failed=0
for part in "${parts[@]}"; do
  if [ "$part" = table ]; then continue; fi
  if [ -z "${limits[$part]:-}" ]; then echo "no part '$part'"; exit 2; fi
  echo "== $part"
  begin=$SECONDS
  # A limit holds for a process: the part runs in a shell of its own, which has the functions and settings of this one.
  export python device tiny state
  export -f info verify clips bench rows
  timeout -k 5 "${limits[$part]}" bash -uo pipefail -c "$part" 2>&1 | tee "$state/$part.log"
  status=${PIPESTATUS[0]}
  echo "$part: $([ "$status" = 0 ] && echo done || echo "FAILED ($status)") in $((SECONDS - begin)) s" | tee -a "$state/$part.log"
  [ "$status" = 0 ] || failed=1
done
if [[ " ${parts[*]} " == *" table "* ]]; then
  "$python" reference/cuda/table.py "$state" >"$state/table.md" || failed=1
  cat "$state/table.md"
  [ -z "$table" ] || cp "$state/table.md" "$table"
fi
exit $failed
