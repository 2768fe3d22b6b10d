#!/usr/bin/env bash
# Compiles the packages beside this file, as apps and draw_on_mac.py take them. It was written without a Mac, and not run.
# Needs macOS and Xcode: coremlcompiler is a part of it.
set -euo pipefail
cd "$(dirname "$0")"
xcrun --find coremlcompiler > /dev/null || { echo "there is no coremlcompiler; install Xcode" >&2; exit 1; }
for package in *.mlpackage; do
    echo "$package"
    rm -rf "${package%.mlpackage}.mlmodelc"
    xcrun coremlcompiler compile "$package" .
done
