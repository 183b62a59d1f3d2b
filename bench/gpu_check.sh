#!/usr/bin/env bash
# All that must hold on a machine with a GPU, in one command and under ten minutes. What it does, what it needs and
# what it leaves in FOLDER is told in gpu_check/__main__.py, which only needs Python itself:
#
#   bash bench/gpu_check.sh [FOLDER [WHEELS]]
exec python3 "$(dirname "$0")/gpu_check" "$@"
