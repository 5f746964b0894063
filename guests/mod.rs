//! The guests that are part of bivisor: small programs for a machine with no system on it, one
//! behaviour each, in assembly.
//!
//! They are assembled into this program by the compiler itself, so no assembler, linker script
//! or second toolchain is needed, and cross-compiling just works. A guest is a flat image: its
//! first byte is its first instruction, and it runs wherever its options say that it is loaded.
//!
//! Every `NAME.S` opens with two comment lines: what it proves, and the options with which
//! `bivisor run NAME.bin` shows it. `bivisor guests` prints both, so they can't go stale unseen.
//! To add a guest, write the file and add its row to the table of its architecture
//! (`guests/<architecture>/mod.rs`).
//!
//! What surprises people: all guests share one assembler, so every label starts with `.L` and
//! the guest's name; and a guest may hold no relocation, since nobody would apply it. Addresses
//! are label differences.

/// One embedded guest.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// What `bivisor guests export` calls it.
    pub name: &'static str,
    /// What it proves, in one sentence: the first line of its source.
    pub proves: &'static str,
    /// Options of `bivisor run` with which it proves that: the second line of its source.
    pub options: &'static str,
    /// The flat image.
    pub image: &'static [u8],
}

/// Every guest for this machine's architecture, in the order of their table.
pub fn all() -> &'static [Guest] {
    crate::arch::guests::all()
}

/// The guest called `name`.
pub fn find(name: &str) -> Option<&'static Guest> {
    all().iter().find(|guest| guest.name == name)
}

/// Builds the table of one architecture's guests from rows of a name and a source file: assembles
/// each source, after the machine's addresses, into read-only data between two symbols.
macro_rules! embed {
    ($machine:literal: $($name:ident $source:literal)*) => {
        $(::core::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\", @progbits",
            // The strictest alignment an instruction set here asks of its code.
            ".balign 4",
            concat!(".globl bivisor_guest_", stringify!($name)),
            concat!(".hidden bivisor_guest_", stringify!($name)),
            concat!("bivisor_guest_", stringify!($name), ":"),
            include_str!($machine),
            include_str!($source),
            concat!(".globl bivisor_guest_", stringify!($name), "_end"),
            concat!(".hidden bivisor_guest_", stringify!($name), "_end"),
            concat!("bivisor_guest_", stringify!($name), "_end:"),
            ".popsection",
            options(raw),
        );)*

        /// Every guest of this architecture.
        pub fn all() -> &'static [$crate::guests::Guest] {
            const COUNT: usize = [$(stringify!($name)),*].len();
            // A table made on first use: where the linker puts a symbol is no constant.
            static ALL: ::std::sync::LazyLock<[$crate::guests::Guest; COUNT]> =
                ::std::sync::LazyLock::new(|| [$({
                    unsafe extern "C" {
                        #[link_name = concat!("bivisor_guest_", stringify!($name))]
                        static START: [u8; 0];
                        #[link_name = concat!("bivisor_guest_", stringify!($name), "_end")]
                        static END: [u8; 0];
                    }
                    const SOURCE: &str = include_str!($source);
                    let start: *const u8 = (&raw const START).cast();
                    let end: *const u8 = (&raw const END).cast();
                    $crate::guests::Guest {
                        name: stringify!($name),
                        proves: const { $crate::guests::header(SOURCE, 0, "//") },
                        options: const { $crate::guests::header(SOURCE, 1, "// Options:") },
                        // SAFETY: the assembler put both symbols around the bytes of one guest in
                        // one read-only section, the end after the start.
                        image: unsafe {
                            ::core::slice::from_raw_parts(start, end.addr() - start.addr())
                        },
                    }
                }),*]);
            &*ALL
        }
    };
}
pub(crate) use embed;

/// Line `number` (from 0) of a guest's source, without the `mark` that it begins with. Works while
/// compiling, so a source without its two header lines does not build.
pub(crate) const fn header<'a>(source: &'a str, number: usize, mark: &str) -> &'a str {
    let mut rest = source.as_bytes();
    let mut line = 0;
    loop {
        let mut len = 0;
        while rest[len] != b'\n' {
            len += 1;
        }
        let (this, after) = rest.split_at(len);
        if line == number {
            let (start, text) = this.split_at(mark.len());
            let mut at = 0;
            while at < start.len() {
                assert!(start[at] == mark.as_bytes()[at], "a guest opens with two comment lines");
                at += 1;
            }
            match core::str::from_utf8(text.trim_ascii()) {
                Ok(text) => return text,
                Err(_) => panic!("a guest's source is UTF-8"),
            }
        }
        (_, rest) = after.split_at(1);
        line += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Our choice: a guest that does one thing fits a tenth of the smallest page.
    const SMALL: usize = 400;

    #[test]
    fn every_guest_is_small_and_says_what_it_proves() {
        assert!(!all().is_empty());
        for guest in all() {
            assert!((1..=SMALL).contains(&guest.image.len()), "{guest:?}");
            assert!(guest.proves.ends_with('.') && guest.proves.len() < 100, "{guest:?}");
            assert!(!guest.options.ends_with(' '), "{guest:?}");
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<_> = all().iter().map(|guest| guest.name).collect();
        assert_eq!(names.len(), all().len());
        for guest in all() {
            assert_eq!(find(guest.name).unwrap().image.as_ptr(), guest.image.as_ptr());
        }
        assert!(find("no such guest").is_none());
    }

    #[test]
    fn header_lines_lose_their_mark() {
        let source = "// It proves this.\n// Options: --mode long\n\n    nop\n";
        assert_eq!(header(source, 0, "//"), "It proves this.");
        assert_eq!(header(source, 1, "// Options:"), "--mode long");
        assert_eq!(header("// It needs none.\n// Options:\n", 1, "// Options:"), "");
    }
}
