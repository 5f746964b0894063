//! The keys of a terminal that are meant for us and not for the guest: Ctrl-A, and what follows.

/// What begins a command to us (ASCII SOH): the key that other monitors and screen use.
const CTRL_A: u8 = 1;

/// What Ctrl-A h shows.
pub const HELP: &str = "\r
bivisor: the keys after Ctrl-A:\r
  x       end the guest, as Ctrl-C would (status 130)\r
  h       show this\r
  Ctrl-A  send one Ctrl-A to the guest\r
  others  go to the guest, after a Ctrl-A\r
";

/// What came of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Press {
    /// These are for the guest.
    Typed(Vec<u8>),
    /// It was the first of two.
    Nothing,
    /// Show what there is.
    Help,
    /// End the guest.
    Quit,
}

/// Tells our keys from the guest's.
#[derive(Debug, Default)]
pub struct Keys {
    /// Ctrl-A was the last one.
    commanded: bool,
}

impl Keys {
    /// What comes of `key`.
    pub fn press(&mut self, key: u8) -> Press {
        match (std::mem::take(&mut self.commanded), key) {
            (false, CTRL_A) => {
                self.commanded = true;
                Press::Nothing
            }
            (true, b'x' | b'X') => Press::Quit,
            (true, b'h' | b'H' | b'?') => Press::Help,
            (true, key) if key != CTRL_A => Press::Typed(vec![CTRL_A, key]),
            _ => Press::Typed(vec![key]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_ctrl_a_is_ours() {
        let mut keys = Keys::default();
        let typed = |bytes: &[u8]| Press::Typed(bytes.to_vec());
        for (key, press) in [
            (b'x', typed(b"x")),
            (1, Press::Nothing),
            (1, typed(&[1])),
            (b'x', typed(b"x")),
            (1, Press::Nothing),
            (b'h', Press::Help),
            (b'h', typed(b"h")),
            (1, Press::Nothing),
            (b'e', typed(&[1, b'e'])),
            (3, typed(&[3])),
            (1, Press::Nothing),
            (b'x', Press::Quit),
        ] {
            assert_eq!(keys.press(key), press, "{key}");
        }
    }
}
