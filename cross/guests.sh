# shellcheck shell=bash
# Owns the guests that nobody here wrote: stock kernels and what runs on them, of Debian's packages,
# fetched once into cross/.cache/guests-ARCH. Sourced after lib.sh, never run.

# guests ARCH: sets $guests to the folder.
guests() {
  local arch=$1 deb new package
  guests=$cache/guests-$arch
  [ -d "$guests" ] && return
  take_turn
  if [ ! -d "$guests" ]; then
    kernel "$arch"
    update_lists
    deb=$(debian_arch "$arch")
    say "downloading guests for $arch"
    new=$(mktemp -d "$cache/new.XXXXXX")
    mkdir "$new/guests"
    fetch "$new" "busybox-static:$deb"
    mv "$new/bin/busybox" "$new/guests"
    # The emulated host's own kernel is a guest too.
    ln "$cache/kernel-$arch/vmlinuz" "$new/guests/cloud"
    case $arch in
    x86_64)
      stock_kernel "$new" linux-image-amd64 "$deb" generic
      fetch "$new" ipxe xen-hypervisor-4.17-amd64:amd64
      mv "$new/boot/ipxe.lkrn" "$new/guests"
      mv "$new/boot/xen-4.17-amd64.gz" "$new/guests/xen.gz"
      ;;
    aarch64)
      stock_kernel "$new" linux-image-6.12-cloud-arm64 "$deb" cloud-6.12
      fetch "$new" u-boot-qemu
      mv "$new/usr/lib/u-boot/qemu_arm64/u-boot.bin" "$new/guests"
      ;;
    esac
    mv -T "$new/guests" "$guests"
    rm -rf "$new"
  fi
  end_turn
}

# stock_kernel FOLDER META-PACKAGE DEB NAME: the kernel that it depends on, as guests/NAME.
stock_kernel() {
  local folder=$1 package
  package=$(dependencies "$2:$3" | grep '^linux-image' || true)
  [ -n "$package" ] || die "apt knows no $2 (Debian 12 has it)"
  fetch "$folder" "$package:$3"
  mv "$folder"/boot/vmlinuz-* "$folder/guests/$4"
  rm -r "$folder/lib/modules"
}
