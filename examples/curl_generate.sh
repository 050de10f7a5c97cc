#!/bin/sh
# Stream an answer over KServe's HTTP with curl: sh examples/curl_generate.sh [BASE_URL] [MODEL]
base_url=${1:-http://127.0.0.1:8000}
model=${2:-smollm2}
curl --silent --show-error --fail-with-body --no-buffer "$base_url/v2/models/$model/generate_stream" \
  --header 'content-type: application/json' \
  --data '{"messages": [{"role": "user", "content": "What is the capital of France?"}],
           "parameters": {"temperature": 0, "max_tokens": 64}}'
