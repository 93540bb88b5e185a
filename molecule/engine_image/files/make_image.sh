#!/bin/bash
# make_image.sh FOLDER: an image in the registry on port 5000, in FOLDER/image.tar and in FOLDER/local.tar.gz.
set -eu -o pipefail
folder=$1
pushed=127.0.0.1:5000/test/vllm:v0.33.0
mkdir -p "$folder"
cd "$folder"

make() {
  printf '%s\n' "$1" > content
  tar -c content | docker import --change "LABEL made-for=$1" - "$1"
}

until curl -fsS http://127.0.0.1:5000/v2/ > /dev/null; do sleep 1; done
make "$pushed"
docker push --quiet "$pushed"
docker image inspect --format '{{index .RepoDigests 0}}' "$pushed" | sed 's/.*@//' > pushed-digest

make localhost/test-engine:0.32.0-abc
docker save localhost/test-engine:0.32.0-abc > image.tar
make localhost/test-engine:0.32.0-def
docker save localhost/test-engine:0.32.0-def | gzip > local.tar.gz

docker image ls --quiet --no-trunc | sort -u | xargs docker image rm --force
mv pushed-digest digest
