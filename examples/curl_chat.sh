#!/bin/sh
# Ask a question with curl: sh examples/curl_chat.sh [BASE_URL] [MODEL]
base_url=${1:-http://127.0.0.1:8000}
model=${2:-smollm2}
curl --silent --show-error --fail-with-body "$base_url/v1/chat/completions" \
  --header 'content-type: application/json' \
  --data '{"model": "'"$model"'", "temperature": 0, "max_tokens": 64,
           "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
echo
