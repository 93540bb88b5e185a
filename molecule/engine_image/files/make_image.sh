#!/bin/bash
# make_image.sh FOLDER: push two images to the registry on port 5000 (the second one unsigned), and save two more as
# FOLDER/image.tar and FOLDER/local.tar.gz. If the host has cosign, the first image is signed with FOLDER/cosign.key.
# Each image has this host's Python and only the package metadata of vLLM.
set -eu -o pipefail
folder=$1
repository=127.0.0.1:5000/test/vllm
python=$(realpath /usr/bin/python3)
mkdir -p "$folder/root"
cd "$folder"

installed() {
  local info=root/usr/local/lib/${python##*/}/dist-packages/$1-$2.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: %s\nVersion: %s\n' "$1" "$2" > "$info/METADATA"
}

make() {
  printf '%s\n' "$1" > root/content
  docker import --change "LABEL made-for=$1" --change 'USER 2000:0' --change 'ENTRYPOINT ["vllm", "serve"]' \
    --change 'ENV PATH=/usr/local/bin:/usr/bin' - "$1" < <(tar -C root -c .)
}

push() {
  make "$repository:$1"
  docker push --quiet "$repository:$1"
  docker image inspect --format '{{index .RepoDigests 0}}' "$repository:$1" | sed 's/.*@//'
}

ldd "$python" | grep -o '/[^ ]*' | xargs -I {} cp --dereference --parents {} root
cp --recursive --parents "$python" "/usr/lib/${python##*/}" /usr/lib/python3/dist-packages/packaging root
ln -sf "${python##*/}" root/usr/bin/python3
installed vllm 0.33.0
installed torch 2.12.0

until curl -fsS http://127.0.0.1:5000/v2/ > /dev/null; do sleep 1; done
digest=$(push v0.33.0 | tail -n 1)
push unsigned | tail -n 1 > unsigned-digest
if command -v cosign > /dev/null; then
  for key in other cosign; do
    COSIGN_PASSWORD='' cosign generate-key-pair --output-key-prefix "$key"
  done
  COSIGN_PASSWORD='' cosign sign --yes --key cosign.key --tlog-upload=false "$repository@$digest"
else
  # A public key is enough to request a signature check.
  openssl ecparam -genkey -name prime256v1 -noout | openssl ec -pubout -out cosign.pub
fi

make localhost/test-engine:0.32.0-abc
docker save localhost/test-engine:0.32.0-abc > image.tar
make localhost/test-engine:0.32.0-def
docker save localhost/test-engine:0.32.0-def | gzip > local.tar.gz

docker image ls --quiet --no-trunc | sort -u | xargs docker image rm --force
rm -r root
printf '%s\n' "$digest" > digest
