#!/bin/sh
# base_image.sh SUITE: create the Docker image test-host:SUITE, a Debian with systemd, unless it exists. The image gets
# the package mirror and the trusted certificates of this machine, so that test hosts can use the same mirrors.
set -eu
suite=$1
image=test-host:$suite
if docker image inspect "$image" >/dev/null 2>&1; then
  echo "$image present"
  exit 0
fi
here=$(cd "$(dirname "$0")/../.." && pwd)
cache=${BASE_IMAGE_CACHE:-$here/.cache/test-hosts}
mkdir -p "$cache"
# Another scenario may be building the image.
exec 9>"$cache/$suite.lock"
flock 9
if docker image inspect "$image" >/dev/null 2>&1; then
  echo "$image present"
  exit 0
fi
tar=$cache/$suite.tar
if [ ! -s "$tar" ]; then
  # The mirror of this machine if it runs Debian, or mmdebstrap's default.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
    | grep -E '/debian/?$' | head -n 1 || true)
  mmdebstrap --quiet --format=tar --variant=minbase \
    --include=systemd,systemd-sysv,dbus,python3,python3-apt,python3-venv,sudo,iproute2,ca-certificates,procps,iptables,curl,kmod,gpg,gpg-agent \
    --components=main "$suite" "$tar.part" ${mirror:+"$mirror"}
  mv "$tar.part" "$tar"
fi
context=$(mktemp -d "$cache/context.XXXXXX")
trap 'rm -rf "$context"' EXIT
docker import -c 'CMD ["/lib/systemd/systemd"]' -c 'ENV container=docker' "$tar" "$image-base" >/dev/null
cp /etc/ssl/certs/ca-certificates.crt "$context/ca-bundle.crt"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$context/pip.conf"
# Containers share the kernel settings of the machine, so systemd-sysctl must not write them.
cat >"$context/Dockerfile" <<EOF_DOCKERFILE
FROM $image-base
COPY ca-bundle.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
RUN rm -f /usr/sbin/policy-rc.d && ln -s /dev/null /etc/systemd/system/systemd-sysctl.service
EOF_DOCKERFILE
docker build --quiet --network none --tag "$image" "$context" >/dev/null
docker image rm "$image-base" >/dev/null 2>&1 || true
echo "$image built"
