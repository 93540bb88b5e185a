#!/bin/sh
# entrypoint.sh CONFIG KEY_FILE: start vLLM with the key of a file.
# vLLM takes a key from its command line, which every process list shows, or from VLLM_API_KEY, which only this process
# and its children see.
set -eu
config=$1
key_file=$2
if [ ! -r "$key_file" ] || [ ! -s "$key_file" ]; then
  echo "[missing_api_key] $key_file is missing, empty or not readable for uid $(id -u)." \
    "Fix: deploy again; role vllm_service writes secrets/api_key for vllm_uid." >&2
  exit 78
fi
VLLM_API_KEY=$(cat "$key_file")
export VLLM_API_KEY
exec vllm serve --config "$config"
