#!/bin/sh
# install.sh RECIPE WHEELS TORCH TARGET: create the virtual environment TARGET from a folder of wheels, without a network.
# TORCH is the requirements file of the torch wheel in that folder.
#
# uv instead of pip: it unpacks the wheels in seconds instead of a minute, and the base image needs no pip.
set -eu
recipe=$1
wheels=$2
torch=$3
target=$4

# Temporary files go to /tmp, which is not part of the image.
export HOME=/tmp
uv_version=$(sed -n "s/^uv==\([^ ]*\).*/\1/p" "$recipe/requirements-tools.txt")
python3 -m zipfile -e "$wheels/uv-$uv_version"-*.whl /tmp/uv
uv=/tmp/uv/uv-$uv_version.data/scripts/uv
chmod +x "$uv"

echo "installing the wheels"
"$uv" venv --quiet --python /usr/bin/python3 "$target"
"$uv" pip install --quiet --python "$target/bin/python" --no-cache --offline --no-index --no-deps --require-hashes \
  --find-links "$wheels" --requirement "$recipe/requirements.txt" --requirement "$torch"

echo "adapting the environment to the CPU"
"$target/bin/python" "$recipe/adapt.py"

echo "loading the engine's libraries"
"$target/bin/python" "$recipe/prove.py"
