#!/usr/bin/env bash
# Lists every package that is installed, with the hashes of its files; run by make lock. Arguments go to uv.
# The CPU build of torch comes from UV_FIND_LINKS if it is set, else from torch's own index; the CUDA build from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make lock" \
        --python-version 3.11.5 --python-platform x86_64-manylinux_2_28 "$@"
}

[ -n "${UV_FIND_LINKS:-}" ] || export UV_TORCH_BACKEND=cpu
# setuptools builds the project, which is installed without looking for it elsewhere
compile pyproject.toml - --extra build --extra serve --no-emit-package torch --output-file constraints.txt "$@" <<<"setuptools>=77"
mapfile -t listed < <(sed --quiet 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package=\1/p' constraints.txt)
compile pyproject.toml --all-extras --constraint constraints.txt --no-emit-package torch "${listed[@]}" \
    --output-file constraints-dev.txt "$@"
torch=$(grep --only-matching 'torch>=[0-9.]*,<[0-9.]*' pyproject.toml)
compile - --constraint constraints.txt "${listed[@]}" --output-file infra/torch-cpu.txt "$@" <<<"$torch"
compile - --output-file tests/servers/swift-constraints.txt "$@" <<<"swift"
unset UV_FIND_LINKS UV_TORCH_BACKEND
compile - --constraint constraints.txt "${listed[@]}" --output-file infra/torch-cuda.txt "$@" <<<"$torch"
