#!/bin/bash
# image.sh SUITE FOLDER: create a virtual machine with Debian and its standard kernel: FOLDER/root.img (disk),
# FOLDER/boot.img (GRUB, which boots the kernel and the initramfs on that disk) and FOLDER/key (SSH key of root). A folder
# that is up to date is not changed. Needs root, mmdebstrap, grub-pc-bin and e2fsprogs. Not from Debian: the module
# nvidia.c and the script in-place-of-dkms, which installs it.
set -euo pipefail
suite=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
recipe=$(cat "$here"/* | sha256sum)
if [ "$(cat "$folder/recipe" 2>/dev/null)" = "$recipe" ]; then
  echo "$folder present"
  exit 0
fi
rm -rf "$folder"
mkdir -p "$folder"
work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
ssh-keygen -q -t ed25519 -N '' -C test -f "$folder/key"

# Loads the modules that udev would load for a GPU on the PCI bus, unless they are blacklisted.
printf 'nouveau\nnvidia\n' >"$work/gpu.conf"
printf '[Match]\nType=ether\n[Network]\nDHCP=ipv4\n' >"$work/wired.network"
echo 'DPkg::Post-Invoke {"/usr/local/sbin/in-place-of-dkms";};' >"$work/apt.conf"
cat >"$work/setup" <<'SETUP'
set -eu
kernel=$(basename /lib/modules/*)
# The version that scenario nvidia_driver_vm installs.
version=580.95.05
make -s -C "/lib/modules/$kernel/build" M=/usr/local/src/nvidia DRIVER_VERSION=$version modules
install -D -m 0644 /usr/local/src/nvidia/nvidia.ko /usr/local/lib/nvidia/$version.ko
# A small initramfs, so that an emulated machine builds it in seconds.
printf 'MODULES=list\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\n' >/etc/initramfs-tools/conf.d/small
printf 'virtio_pci\nvirtio_blk\next4\n' >/etc/initramfs-tools/modules
update-initramfs -u -k all
systemctl --quiet enable systemd-networkd ssh
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer systemd-networkd-wait-online.service
echo 'LABEL=root / ext4 defaults,noatime 0 1' >/etc/fstab
echo vm >/etc/hostname
printf '127.0.0.1 localhost vm\n' >/etc/hosts
# The machine has no network access.
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
SETUP

# The mirror of this machine if it runs Debian, or mmdebstrap's default.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
  | grep -E '/debian/?$' | head -n 1 || true)
mmdebstrap --quiet --format=directory --variant=minbase --components=main \
  --include=systemd,systemd-sysv,dbus,udev,kmod,linux-image-amd64,linux-headers-amd64,initramfs-tools,zstd,make \
  --include=openssh-server,python3,python3-apt,python3-debian,sudo,iproute2,procps,ca-certificates,gpg,gpg-agent \
  --customize-hook='mkdir -p "$1/root/.ssh" "$1/usr/local/src/nvidia"' \
  --customize-hook="upload '$folder/key.pub' /root/.ssh/authorized_keys" \
  --customize-hook="upload '$work/gpu.conf' /etc/modules-load.d/gpu.conf" \
  --customize-hook="upload '$work/wired.network' /etc/systemd/network/wired.network" \
  --customize-hook="upload '$work/apt.conf' /etc/apt/apt.conf.d/90in-place-of-dkms" \
  --customize-hook="upload '$here/in-place-of-dkms' /usr/local/sbin/in-place-of-dkms" \
  --customize-hook="copy-in '$here/nvidia.c' '$here/Kbuild' /usr/local/src/nvidia" \
  --customize-hook='chmod 0755 "$1/usr/local/sbin/in-place-of-dkms"; chmod -R go= "$1/root/.ssh"' \
  --customize-hook="chroot \"\$1\" /bin/sh <'$work/setup'" \
  "$suite" "$work/root" ${mirror:+"$mirror"}

truncate --size=4G "$folder/root.img"
mkfs.ext4 -q -L root -d "$work/root" "$folder/root.img"

# GRUB instead of qemu loads the kernel, so that the machine boots with the current initramfs on its disk.
cat >"$work/grub.cfg" <<'GRUB'
search --set=root --label root
linux /vmlinuz root=LABEL=root console=ttyS0 net.ifnames=0 mitigations=off quiet
initrd /initrd.img
boot
GRUB
grub-mkimage --format=i386-pc --prefix=/ --config="$work/grub.cfg" --output="$work/core.img" \
  biosdisk ext2 linux search search_label
cat /usr/lib/grub/i386-pc/boot.img "$work/core.img" >"$folder/boot.img"
truncate --size=1M "$folder/boot.img"
echo "$recipe" >"$folder/recipe"
echo "$folder built"
