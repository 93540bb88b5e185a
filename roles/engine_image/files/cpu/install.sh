#!/bin/sh
# install.sh CONTEXT TARGET: make the virtual environment TARGET from CONTEXT/wheels, without network.
#
# uv instead of pip: it unpacks the wheels in 10 s where pip takes minutes, and it needs nothing in the base image.
set -eu
context=$1
target=$2

python3 -m zipfile -e "$context"/tools/uv-*.whl /tmp/uv
uv=$(echo /tmp/uv/uv-*.data/scripts/uv)
chmod +x "$uv"

echo "installing the wheels"
"$uv" venv --quiet --python /usr/bin/python3 "$target"
"$uv" pip install --quiet --python "$target/bin/python" --no-cache --offline --no-index --no-deps --require-hashes \
  --find-links "$context/wheels" --requirement "$context/requirements.txt"

echo "adapting the environment to the CPU"
"$target/bin/python" "$context/adapt.py"
