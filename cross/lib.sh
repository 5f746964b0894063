# shellcheck shell=bash
# Owns what the scripts in cross/ share: how they talk, and what is downloaded or built once
# into cross/.cache. Sourced, never run. Everything in the cache is made under another name and
# then renamed, so what is there is whole; `rm -r cross/.cache` starts afresh.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/cross/.cache
here=${0##*/}

say() { echo "cross/$here: $*" >&2; }

die() {
  say "$*"
  exit 125
}

# Runs a command with its output in a log file that is shown when it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 60 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# Takes a lock for the rest of the script: two scripts never make the same thing twice.
take_turn() {
  mkdir -p "$cache"
  exec {turn}>"$cache/turn"
  flock "$turn"
}

end_turn() { exec {turn}>&-; }

# This machine's architecture in the words of target triples, and Debian's word for one.
host_arch() { uname -m; }
debian_arch() { case $1 in x86_64) echo amd64 ;; aarch64) echo arm64 ;; esac; }

known_arch() { case $1 in x86_64 | aarch64) ;; *) return 1 ;; esac; }

# ---------------------------------------------------------------- packages of Debian, unpacked

# apt with lists of its own: of both architectures, without a change to the machine, without root.
# Without a cache of the lists, which images of containers switch off, each question takes seconds.
private_apt() {
  local tool=$1 apt=$cache/apt
  shift
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  "$tool" -q -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt" -o Dir::State::status=/dev/null \
    -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
    -o "APT::Architectures::=amd64" -o "APT::Architectures::=arm64" -o APT::Sandbox::User= \
    -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# download FOLDER PACKAGE…: downloads the packages into the folder.
download() {
  local debs=$1
  shift
  mkdir -p "$debs"
  (cd "$debs" && quietly timeout 600 bash -c "$(declare -f private_apt); cache=\$0; private_apt apt-get download \"\$@\"" "$cache" "$@") ||
    die "downloading $* failed (is the network there, and is this a Debian 12?)"
}

# fetch FOLDER PACKAGE…: downloads the packages and unpacks them into the folder.
fetch() {
  local folder=$1 debs=$1/.debs deb
  shift
  download "$debs" "$@"
  for deb in "$debs"/*.deb; do
    dpkg -x "$deb" "$folder"
  done
  rm -rf "$debs"
}

update_lists() {
  [ -n "${lists_updated:-}" ] && return
  command -v apt-get >/dev/null || die "no apt-get here: the emulated hosts are made of Debian's packages"
  say "reading Debian's package lists"
  quietly timeout 300 bash -c "$(declare -f private_apt); cache=\$0; private_apt apt-get update" "$cache" ||
    die "reading Debian's package lists failed (is the network there?)"
  lists_updated=1
}

# dependencies PACKAGE: the names of the packages that it depends on.
dependencies() { private_apt apt-cache depends "$1" | sed -n 's/^ *Depends: \([^:<]*\).*/\1/p'; }

# kernel HOST: the kernel of the emulated host, in $cache/kernel-HOST as vmlinuz and modules.
kernel() {
  local host=$1 deb meta package new
  [ -d "$cache/kernel-$host" ] && return
  update_lists
  deb=$(debian_arch "${host%-max}")
  # The name of the real package has a number that changes: the meta-package knows it. What the
  # largest CPU has, only a younger kernel gives guests.
  case $host in *-max) meta=linux-image-6.12-cloud-$deb ;; *) meta=linux-image-cloud-$deb ;; esac
  package=$(dependencies "$meta:$deb" | grep '^linux-image' || true)
  [ -n "$package" ] || die "apt knows no $meta (Debian 12 has it)"
  say "downloading $package"
  new=$(mktemp -d "$cache/new.XXXXXX")
  fetch "$new" "$package:$deb"
  mkdir "$new/kernel"
  mv "$new"/boot/vmlinuz-* "$new/kernel/vmlinuz"
  mv "$new"/lib/modules/* "$new/kernel/modules"
  mv -T "$new/kernel" "$cache/kernel-$host"
  rm -rf "$new"
}

# ---------------------------------------------------------------- the Rust targets

# run_here: has programs for $triple, which is this machine's, run on it and not in an emulated host.
run_here() {
  local variable
  variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$triple")
  export "${variable}_RUNNER=/usr/bin/env"
}

# use_target ARCH: sets $triple and exports what cargo needs to build for it.
use_target() {
  local arch=$1 variable
  # cargo hands what we exported for it down to us when it calls cross/runner.
  [[ ${RUSTC:-} != "$cache"/* ]] || unset RUSTC RUSTDOC
  triple=$arch-unknown-linux-musl
  if [ "${BIVISOR_CROSS:-}" != debian ]; then
    has_std "$triple" && return
    add_std "$triple" && return
    say "rustup has no $triple for us: using Debian's libraries instead"
  fi
  triple=$arch-unknown-linux-gnu
  variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$triple")
  export "${variable}_RUSTFLAGS=-C target-feature=+crt-static" "${variable}_RUNNER=cross/runner $arch"
  export "${variable}_RUSTDOCFLAGS=-C target-feature=+crt-static"
  [ "$arch" = "$(host_arch)" ] && return
  debian_rust "$arch"
  export RUSTC=$cache/rust-$arch/rustc RUSTDOC=$cache/rust-$arch/rustdoc
  export "${variable}_LINKER=$cache/rust-$arch/linker"
}

has_std() { [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]; }

add_std() {
  command -v rustup >/dev/null || return 1
  say "adding the Rust target $1"
  # It was seen to stall here: then the second try is as good as a longer wait.
  quietly timeout 60 rustup target add "$1" || quietly timeout 60 rustup target add "$1"
}

# debian_rust ARCH: a rustc with the library for the other architecture, and its linker, from
# Debian, unpacked into $cache/rust-ARCH.
debian_rust() {
  local arch=$1 new there gnu library llvm
  [ -d "$cache/rust-$arch" ] && return
  take_turn
  if [ ! -d "$cache/rust-$arch" ]; then
    update_lists
    there=$(debian_arch "$arch") gnu=${arch/_/-}-linux-gnu
    library=$(dependencies libstd-rust-web-dev | grep '^libstd-rust-web-')
    llvm=$(dependencies "$library" | grep '^libllvm')
    [ -n "$llvm" ] || die "apt knows no rustc-web with its libraries (Debian 12 has it)"
    say "downloading Debian's Rust for $arch"
    new=$(mktemp -d "$cache/new.XXXXXX")
    fetch "$new" rustc-web "$library" libstd-rust-web-dev "libstd-rust-web-dev:$there" \
      "$llvm" $(dependencies "$llvm" | grep -v -E '^(libc6|libgcc-s1|libstdc\+\+6)$') \
      "gcc-12-$gnu" "cpp-12-$gnu" "binutils-$gnu" "libgcc-12-dev-$there-cross" "libgcc-s1-$there-cross" \
      "libc6-dev-$there-cross" "libc6-$there-cross" "linux-libc-dev-$there-cross"
    debian_rust_tools "$new" "$gnu"
    mv -T "$new" "$cache/rust-$arch"
  fi
  end_turn
}

# The programs that cargo is pointed at; they find their libraries wherever they lie.
debian_rust_tools() {
  local folder=$1 gnu=$2 pair
  for pair in rustc=rustc rustdoc=rustdoc "linker=$gnu-gcc-12"; do
    cat >"$folder/${pair%=*}" <<END
#!/bin/sh
here=\${0%/*}
export PATH="\$here/usr/bin:\$PATH" LD_LIBRARY_PATH="\$here/usr/lib/$(host_arch)-linux-gnu"
exec "\$here/usr/bin/${pair#*=}" "\$@"
END
    chmod +x "$folder/${pair%=*}"
  done
  # Text files that name libraries by where they would be installed.
  sed -i "s#/usr/$gnu/lib/##g" "$folder/usr/$gnu/lib/libc.so" "$folder/usr/$gnu/lib/libm.so"
}

# build_bivisor: for $triple, as a release. Sets $program. Silent on success, but for one line
# where it will take a while.
build_bivisor() {
  program=${CARGO_TARGET_DIR:-$root/target}/$triple/release/bivisor
  if [ ! -x "$program" ] || [ -n "$(newer_source "$program")" ]; then
    say "building bivisor for $triple"
  fi
  (cd "$root" && quietly cargo build --release --target "$triple" --bin bivisor) ||
    die "bivisor does not build for $triple"
}

newer_source() {
  (cd "$root" && find Cargo.toml Cargo.lock src arch guests -type f -newer "$1" -print -quit)
}

# ---------------------------------------------------------------- the emulated host

# The modules that the emulated host loads; what they depend on is found by itself.
wanted_modules() {
  case $1 in
  x86_64) echo virtio_pci virtio_console kvm-amd tun ;;
  aarch64) echo virtio_mmio virtio_console tun ;;
  esac
}

# nested ARCH: makes the program `nested`, and the kernel and the first file system of the emulated
# host with the CPU $BIVISOR_CPU. Sets $nested to the program with the options that name all that.
nested() {
  local arch=$1 cpu=${BIVISOR_CPU:-default} host=$1 digest program initrd
  case $arch-$cpu in
  *-default) ;;
  aarch64-max) host=$arch-max ;;
  *) die "no emulated $arch host has the CPU $cpu: default, or on aarch64 max" ;;
  esac
  digest=$(cd "$root/cross" && cat lib.sh nested/Cargo.* $(find nested/src -name '*.rs' | sort) | sha256sum)
  digest=${digest:0:12}
  program=$cache/nested-$digest/nested
  initrd=$cache/nested-$digest/$host-$digest.cpio
  nested=("$program" --arch "$arch" --cpu "$cpu" --kernel "$cache/kernel-$host/vmlinuz" --initrd "$initrd"
    --dir "$cache/run")
  [ -x "$program" ] && [ -f "$initrd" ] && [ -d "$cache/kernel-$host" ] && return
  take_turn
  kernel "$host"
  mkdir -p "$cache/nested-$digest"
  [ -x "$program" ] || {
    # Hosts of an earlier version end by themselves; what they wrote is of no use any more.
    find "$cache" -maxdepth 1 -name 'nested-*' ! -name "nested-$digest" -exec rm -rf {} +
    find "$cache/run" -type f ! -name "*-$digest-*" -delete 2>/dev/null || true
    build_nested nested "$(host_arch)" "$program"
  }
  [ -f "$initrd" ] || pack_initrd "$arch" "$cache/kernel-$host/modules" "$initrd"
  end_turn
}

# build_nested PROGRAM ARCH FILE
build_nested() (
  say "building cross/nested ($1 for $2)"
  use_target "$2"
  cd "$root" || exit
  quietly cargo build --release --locked --manifest-path cross/nested/Cargo.toml --bin "$1" \
    --target "$triple" --target-dir "$cache/target" || die "cross/nested does not build"
  cp "$cache/target/$triple/release/$1" "$3.new"
  mv "$3.new" "$3"
)

# pack_initrd ARCH MODULES FILE
pack_initrd() {
  local arch=$1 modules=$2 initrd=$3 new
  command -v cpio >/dev/null || die "cpio is missing (cross/setup installs it)"
  new=$(mktemp -d "$cache/new.XXXXXX")
  mkdir -p "$new/root/modules"
  build_nested agent "$arch" "$new/root/init"
  copy_modules "$modules" "$new/root/modules" $(wanted_modules "$arch")
  (cd "$new/root" && find . | sort | cpio -o -H newc --quiet -R 0:0) >"$new/initrd"
  mv "$new/initrd" "$initrd"
  rm -rf "$new"
}

# copy_modules FROM TO NAME…: numbered in an order in which each can be loaded.
copy_modules() {
  local from=$1 to=$2 name file on
  shift 2
  for name; do
    file=$(find "$from" -name "${name//[-_]/[-_]}.ko" -o -name "${name//[-_]/[-_]}.ko.xz" | head -n 1)
    [ -n "$file" ] || continue # built into the kernel
    name=${file##*/}
    name=${name%.xz}
    [ -z "$(find "$to" -name "*-$name")" ] || continue
    on=$(unpacked "$file" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' ')
    copy_modules "$from" "$to" $on
    unpacked "$file" >"$to/$(printf %02d "$(find "$to" -name '*.ko' | wc -l)")-$name"
  done
}

unpacked() { case $1 in *.xz) xz -dc "$1" ;; *) cat "$1" ;; esac; }
