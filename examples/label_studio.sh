#!/usr/bin/env bash
# One query of a run through a Label Studio of its own, on this machine alone:
#
#     bash examples/label_studio.sh exp_results/latest
#
# The first time it is installed into label_studio/venv (or MED_SSLAL_LABEL_STUDIO names the program
# label-studio). Run this from the project's folder, once for each query; started again, it goes on.
set -euo pipefail

run=$(cd "${1:?name the folder of a run that waits for answers}" && pwd)
home=$PWD/label_studio
url=http://localhost:${PORT:-8080}
queries=("$run"/cycle_*/query_*)
query=${queries[-1]}

# What is made here is its owner's alone.
umask 077
mkdir -p "$home"
program=${MED_SSLAL_LABEL_STUDIO:-$home/venv/bin/label-studio}
if [ ! -x "$program" ]; then
    python3 -m venv "$home/venv"
    "$home/venv/bin/pip" install label-studio==1.23.2
fi
if [ ! -f "$home/token" ]; then
    python3 -c 'import secrets; print(secrets.token_hex(20))' > "$home/token"
fi
LABEL_STUDIO_TOKEN=$(cat "$home/token")
export LABEL_STUDIO_TOKEN

# The token is the password, too. Nothing is told to anybody else.
LABEL_STUDIO_USERNAME=reader@example.org LABEL_STUDIO_PASSWORD=$LABEL_STUDIO_TOKEN \
LABEL_STUDIO_USER_TOKEN=$LABEL_STUDIO_TOKEN \
LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=$run \
COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false SENTRY_DSN='' FRONTEND_SENTRY_DSN='' \
    "$program" start --data-dir "$home/data" --port "${url##*:}" --internal-host 127.0.0.1 \
    --no-browser --enable-legacy-api-token > "$home/log.txt" 2>&1 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail --output /dev/null "$url/health"; do
    kill -0 $server || { tail "$home/log.txt"; exit 1; }
    sleep 1
done

# Where this was stopped before, the tasks are there, and are not put in twice.
python -m med_sslal query push "$query" --url "$url" --local-root "$run" || true
echo "Log in at $url as reader@example.org; the password is in $home/token."
read -r -p "Press Enter when the images are labelled: "
python -m med_sslal query pull "$query" --url "$url" --out "$home/answers.json"
python -m med_sslal import "$query" "$home/answers.json"
python train.py --resume "$run"
