# shellcheck shell=bash
# Owns the guests that nobody here wrote: stock kernels, what runs on them, and what looks into them,
# of Debian's packages, fetched once into cross/.cache/guests-ARCH. Sourced after lib.sh, never run.

# guests ARCH: sets $guests to the folder.
guests() {
  # What is fetched does not depend on the CPU; the kernel that is asked for its symbols runs anywhere.
  local -x BIVISOR_CPU=default
  guests=$cache/guests-$1
  nested "$1"
  stock_guests "$1"
  part "$1" modules virtio_modules
  part "$1" disk-tools disk_tools
  part "$1" passt passt_tree
  part "$1" back-ends back_ends
}

# long_guests ARCH: adds to them what only tests that take minutes use.
long_guests() {
  part "$1" load-tools load_tools
  ! command -v mmdebstrap >/dev/null || part "$1" debian debian_disk
}

# part ARCH NAME FUNCTION: what is in the folder NAME of the guests is made by FUNCTION, which is
# called with the folder and ARCH. A folder that another version of the function has made is replaced.
part() {
  local arch=$1 made=$guests/$2 stamp new
  stamp=$(declare -f "$3" | sha256sum)
  stamp=${stamp:0:12}
  [ "$(cat "$made/.made-by" 2>/dev/null)" != "$stamp" ] || return 0
  # A turn of its own, as below.
  exec {guests_turn}>"$cache/turn-guests"
  flock "$guests_turn"
  if [ "$(cat "$made/.made-by" 2>/dev/null)" != "$stamp" ]; then
    new=$(mktemp -d "$cache/new.XXXXXX")
    "$3" "$new" "$arch"
    echo "$stamp" >"$new/.made-by"
    chmod 755 "$new"
    rm -rf "$made"
    mv -T "$new" "$made"
  fi
  exec {guests_turn}>&-
}

# virtio_modules FOLDER ARCH: the cloud kernel's drivers of virtio devices, numbered in an order in
# which each can be loaded.
virtio_modules() {
  copy_modules "$cache/kernel-$2/modules" "$1" virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng \
    virtio_console virtio_balloon vmw_vsock_virtio_transport virtiofs af_packet
}

# disk_tools FOLDER ARCH: what makes, checks and compares file systems and disks.
disk_tools() {
  program_tree "$1/mke2fs" "$2" sbin/mke2fs e2fsprogs
  program_tree "$1/e2fsck" "$2" sbin/e2fsck e2fsprogs
  program_tree "$1/qemu-img" "$2" usr/bin/qemu-img qemu-utils
}

# passt_tree FOLDER ARCH: passt, and what it needs to run anywhere.
passt_tree() {
  program_tree "$1" "$2" usr/bin/passt passt
}

# back_ends FOLDER ARCH: programs that serve devices by vhost-user.
back_ends() {
  program_tree "$1/virtiofsd" "$2" usr/lib/qemu/virtiofsd qemu-system-common
  program_tree "$1/qemu-storage-daemon" "$2" usr/bin/qemu-storage-daemon qemu-system-common
}

# load_tools FOLDER ARCH: what puts load on disks and networks, and measures it.
load_tools() {
  program_tree "$1/fio" "$2" usr/bin/fio fio
  program_tree "$1/iperf3" "$2" usr/bin/iperf3 iperf3
}

# debian_disk FOLDER ARCH: a disk with Debian's root file system and systemd, unpacked by mmdebstrap.
# What would then be configured, which takes a machine of that architecture, is written here: users,
# and a login that asks for no password.
debian_disk() {
  local folder=$1 deb all file
  deb=$(debian_arch "$2")
  all=$(mktemp -d "$cache/new.XXXXXX")
  update_lists
  debian_sources >"$all/sources.list"
  quietly timeout 600 mmdebstrap --variant=extract --arch="$deb" --skip=check/qemu \
    --setup-hook='for name in bin sbin lib lib64; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done' \
    --include="systemd-sysv udev bash login passwd util-linux mount base-files base-passwd coreutils grep
      sed hostname libpam-modules" bookworm "$all/root" "$all/sources.list" ||
    die "unpacking Debian for $2 failed (is the network there, and is this a Debian 12?)"
  (
    cd "$all/root"
    rm -rf usr/share/{doc,man,locale,info}
    for file in passwd group; do cp "usr/share/base-passwd/$file.master" "etc/$file"; done
    sed -i 's/^root:[^:]*:/root::/' etc/passwd
    for file in auth account session password; do echo "$file required pam_permit.so" >"etc/pam.d/common-$file"; done
    echo /dev/vda / ext4 defaults 0 1 >etc/fstab
    echo bivisor-guest >etc/hostname
    : >etc/machine-id
    [ -e bin/sh ] || ln -s dash bin/sh
  )
  truncate -s 512M "$all/root.img"
  PATH=$PATH:/usr/sbin mke2fs -q -F -t ext4 -d "$all/root" "$all/root.img"
  qemu-img convert -f raw -O qcow2 "$all/root.img" "$folder/root.qcow2"
  rm -rf "$all"
}

# debian_sources: where this machine has Debian from, as sources.list has it.
debian_sources() {
  private_apt apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Created-By: Packages' 'Origin: Debian' | sort -u
}

# stock_guests ARCH: what there is beside the parts.
stock_guests() {
  local arch=$1 deb new package
  [ -d "$guests" ] && return
  # A turn of its own: what runs in between takes the other one.
  exec {guests_turn}>"$cache/turn-guests"
  flock "$guests_turn"
  if [ ! -d "$guests" ]; then
    update_lists
    deb=$(debian_arch "$arch")
    say "downloading guests for $arch"
    new=$(mktemp -d "$cache/new.XXXXXX")
    mkdir "$new/guests"
    fetch "$new" "busybox-static:$deb"
    program_tree "$new/guests/gdb" "$arch" usr/bin/gdb gdb-minimal
    mv "$new/bin/busybox" "$new/guests"
    # The emulated host's own kernel is a guest too.
    ln "$cache/kernel-$arch/vmlinuz" "$new/guests/cloud"
    find "$cache/kernel-$arch/modules" -name 'pvpanic*.ko' -exec cp {} "$new/guests" \;
    case $arch in
    x86_64)
      stock_kernel "$new" linux-image-amd64 "$deb" generic
      fetch "$new" ipxe xen-hypervisor-4.17-amd64:amd64
      mv "$new/boot/ipxe.lkrn" "$new/guests"
      mv "$new/boot/xen-4.17-amd64.gz" "$new/guests/xen.gz"
      ;;
    aarch64)
      # It is the kernel of the other emulated host, too.
      take_turn
      kernel aarch64-max
      end_turn
      ln "$cache/kernel-aarch64-max/vmlinuz" "$new/guests/cloud-6.12"
      fetch "$new" u-boot-qemu
      mv "$new/usr/lib/u-boot/qemu_arm64/u-boot.bin" "$new/guests"
      ;;
    esac
    symbols "$arch" "$new/guests"
    mv -T "$new/guests" "$guests"
    rm -rf "$new"
  fi
  exec {guests_turn}>&-
}

# stock_kernel FOLDER META-PACKAGE DEB NAME: the kernel that it depends on, as guests/NAME.
stock_kernel() {
  local folder=$1 package
  package=$(dependencies "$2:$3" | grep '^linux-image' || true)
  [ -n "$package" ] || die "apt knows no $2 (Debian 12 has it)"
  fetch "$folder" "$package:$3"
  mv "$folder"/boot/vmlinuz-* "$folder/guests/$4"
  echo "$2: $(find "$folder/lib/modules" -name 'pvpanic*' -name '*.ko*' | tr '\n' ' ')" >&2
  rm -r "$folder/lib/modules"
}

# symbols ARCH FOLDER: where the cloud kernel there has a few symbols when it is not moved, as itself
# says, in FOLDER/System.map. Debian's kernels come without one.
symbols() {
  local arch=$1 folder=$2 root
  root=$(mktemp -d)
  mkdir "$root/bin" "$root/proc"
  cp "$folder/busybox" "$root/bin"
  cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox grep -E ' (_stext|start_kernel|setup_arch|linux_banner)$' /proc/kallsyms
/bin/busybox poweroff -f
END
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet >"$folder/symbols.cpio")
  rm -rf "$root"
  "${BASH_SOURCE[0]%/*}/run" "$arch" --file "$folder/cloud" --file "$folder/symbols.cpio" -- run cloud \
    --initrd symbols.cpio --memory 256M --timeout 240s --cmdline "quiet nokaslr" 2>&1 </dev/null {guests_turn}>&- |
    tr -d '\r' | grep -E '^[0-9a-f]{16} [A-Za-z] [a-z_]+$' >"$folder/System.map"
  rm "$folder/symbols.cpio"
  [ "$(grep -c -E ' (_stext|start_kernel)$' "$folder/System.map")" = 2 ] ||
    die "the kernel of $arch does not tell its symbols"
}

# program_tree FOLDER ARCH PROGRAM PACKAGE…: the program with its loader (as `loader`) and the
# libraries that it needs, all in one folder, so that it runs anywhere.
program_tree() {
  local folder=$1 arch=$2 program=$3 deb all
  shift 3
  deb=$(debian_arch "$arch")
  all=$(mktemp -d "$cache/new.XXXXXX")
  fetch "$all" $({
    printf '%s\n' "$@"
    libraries "${@/%/:$deb}"
  } | sort -u | with_architecture "$deb")
  mkdir -p "$folder"
  cp "$all/$program" "$folder"
  with_needed "$folder" "$all" "$folder/${program##*/}"
  mv "$folder"/ld-linux* "$folder/loader"
  [ ! -d "$all/usr/share/qemu" ] || cp -rL "$all/usr/share/qemu" "$folder" 2>/dev/null || true
  [ ! -d "$all/usr/share/seabios" ] || cp "$all"/usr/share/seabios/* "$folder/qemu"
  rm -rf "$all"
}

# libraries PACKAGE…: the libraries that they depend on, and those that these depend on.
libraries() {
  private_apt apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$@" | sed -n 's/^\(lib[^: ]*\|zlib[^: ]*\)\(:.*\)\?$/\1/p'
}

# with_architecture DEB: the packages that it reads the names of, as apt-get download wants them;
# nothing for one that has no file, such as a virtual one.
with_architecture() {
  private_apt apt-cache show --no-all-versions $(sed "s/$/:$1/") 2>/dev/null |
    awk -v deb="$1" '/^Package:/ { name = $2 }
      /^Architecture:/ { print name ($2 == "all" ? "" : ":" deb) }'
}

# with_needed TO FROM FILE: copies what FILE needs from the packages in FROM, and what that needs.
with_needed() {
  local to=$1 from=$2 name file
  for name in $(readelf -d "$3" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [ ! -e "$to/$name" ] || continue
    file=$(find "$from" -name "$name" | head -n 1)
    [ -n "$file" ] || continue
    cp -L "$file" "$to/$name"
    with_needed "$to" "$from" "$to/$name"
  done
  case ${3##*/} in
  ld-linux*) ;;
  *) [ -n "$(find "$to" -name 'ld-linux*')" ] || cp -L "$(find "$from" -path "*-gnu/ld-linux*" | head -n 1)" "$to" ;;
  esac
}
