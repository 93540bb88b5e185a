#!/bin/sh
# Starts vLLM with the key of the secret file. vLLM takes a key from its command line, which every process list shows,
# or from VLLM_API_KEY, which only this process and its children see.
set -eu
secret=/run/secrets/vllm_api_key
if [ ! -r "$secret" ] || [ ! -s "$secret" ]; then
  echo "[missing_api_key] $secret is missing, empty or not readable for uid $(id -u)." \
    "Fix: deploy again; role vllm_service writes secrets/api_key for vllm_uid." >&2
  exit 78
fi
VLLM_API_KEY=$(cat "$secret")
export VLLM_API_KEY
exec vllm serve --config "$1"
