#!/usr/bin/env bash
# Builds and runs all native GPU tests and benches on a machine with a GPU; needs only a C compiler. Results go to the
# folder that is named (default: a new temporary one).
#
#   test/gpu/native_run.sh [FOLDER] [tests] [sanitize] [bench SUITE...]
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-$(mktemp -d)}; shift || true
mkdir -p "$out"; work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
flags='-std=c17 -D_GNU_SOURCE= -DKVF_ABI_HASH="0123456789abcdef" -Wall -Wextra -O3 -g -pthread -Icshim -Itest/native'
# program SOURCE NAME FLAGS: links a program with what it needs of the library, whatever that is. The library is compiled once
# for the flags.
program() {
  local library; library="$work/$(printf %s "$3" | cksum | cut -d' ' -f1)"
  if [ ! -e "$library.a" ]; then
    mkdir -p "$library"
    # shellcheck disable=SC2086
    printf '%s\n' cshim/*.c | xargs -P "$(nproc)" -I{} sh -c 'gcc "$@" -c {} -o "'"$library"'/$(basename {} .c).o"' gcc $3 || return 1
    ar rcs "$library.a" "$library"/*.o || return 1
  fi
  # shellcheck disable=SC2086
  gcc $3 "$1" "$library.a" -o "$work/$2" -lm -ldl
}
{ program test/native/cuda_jobs.c jobs "$flags" && program test/gpu/native_bench.c bench "$flags"; } || exit 1
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,pcie.link.gen.current,pcie.link.width.current --format=csv > "$out/gpu.csv" 2>&1
result=0
while [ $# -gt 0 ]; do
  case $1 in
    tests)
      for seed in 1 2 3; do "$work/jobs" "" 400 $seed > "$out/jobs-$seed.txt" 2>&1 || result=1; tail -n 12 "$out/jobs-$seed.txt"; done
      "$work/jobs" "" 20 9 fault > "$out/jobs-fault.txt" 2>&1 || result=1; tail -n 6 "$out/jobs-fault.txt"; shift ;;
    sanitize)
      # Refusals are part of the tests: only findings inside of kernels and copies count.
      # initcheck does not see what batched copies write, so there the driver's plain copies take their place.
      sanitized() { # TOOL MODE
        timeout 150 compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 9 "$work/jobs" "" 12 5 $2 > "$out/sanitize-$1.txt" 2>&1
        echo $? > "$out/sanitize-$1.exit"
      }
      # Alone: beside the others, on a machine of two GPUs, it took a list for never written whose bytes were all there.
      sanitized initcheck plain
      for tool in memcheck racecheck synccheck; do sanitized $tool "" & done
      # The driver maps memory where AddressSanitizer guards its shadow; leaks of the driver itself are not ours.
      { program test/native/cuda_jobs.c jobs-asan "${flags/-O3/-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all}" &&
          ASAN_OPTIONS=protect_shadow_gap=0:detect_leaks=0 timeout 150 "$work/jobs-asan" "" 100 6; } > "$out/sanitize-address.txt" 2>&1
      echo $? > "$out/sanitize-address.exit"
      echo "ERROR SUMMARY: $(($(cat "$out/sanitize-address.exit") != 0)) errors" >> "$out/sanitize-address.txt"
      wait
      for tool in memcheck racecheck initcheck synccheck address; do
        echo "$tool: exit $(cat "$out/sanitize-$tool.exit")"; grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|failures' "$out/sanitize-$tool.txt"
        # Of findings the first ones say most.
        [ "$(cat "$out/sanitize-$tool.exit")" = 0 ] || grep -vE 'COMPUTE-SANITIZER|^\{' "$out/sanitize-$tool.txt" | head -n 40
      done; shift ;;
    bench) # a process for each suite, so that a stuck one costs its own time only
      shift; mode=plain; : > "$out/native.csv"
      for suite in "$@"; do
        case $suite in plain|sweep) mode=$suite; continue ;; esac
        timeout 90 "$work/bench" $mode "$suite" >> "$out/native.csv" 2>&1 || { echo "$suite: exit $?" | tee -a "$out/native.csv"; result=1; }
      done
      cat "$out/native.csv"; break ;;
    *) echo "what is $1?"; exit 2 ;;
  esac
done
exit $result
