#!/bin/sh
# entrypoint.sh CONFIG KEY_FILE FORMER_KEY_FILE: start vLLM with the key in KEY_FILE, and during a key rotation also with
# the key in FORMER_KEY_FILE. A key on the command line would be visible in the process list. The environment variable
# VLLM_API_KEY, visible to this process and its children only, holds one key; two keys are written to a copy of CONFIG
# that only this user can read.
set -eu
config=$1
key_file=$2
former_file=$3
if [ ! -r "$key_file" ] || [ ! -s "$key_file" ]; then
  echo "[missing_api_key] $key_file is missing, empty or not readable for uid $(id -u)." \
    "Fix: deploy again; role vllm_service writes secrets/api_key for vllm_uid." >&2
  exit 78
fi
if [ -s "$former_file" ]; then
  umask 077
  both=${TMPDIR:-/tmp}/vllm-with-keys.yaml
  {
    cat "$config"
    echo "api-key:"
    for file in "$key_file" "$former_file"; do sed "s/'/''/g; s/^/  - '/; s/\$/'/" "$file"; echo; done
  } >"$both"
  exec vllm serve --config "$both"
fi
VLLM_API_KEY=$(cat "$key_file")
export VLLM_API_KEY
exec vllm serve --config "$config"
